"""Thread pool that parses large bodies outside the event loop, and encodes the answers to them.

Owns how many bodies are parsed at once, and the order. It is separate from asyncio's default pool, so that changes of
settings (keys, weights, a rollback), which run there, never wait behind requests. How many wait is bounded once: by the
requests that a replica accepts at a time, and by the turns of large ones beside small ones (see ``turns``).
"""

from __future__ import annotations

import asyncio
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 1
"""The interpreter parses one body at a time; a second thread would only keep it from the event loop."""
IMAGE_THREADS = 2
"""Decoding images releases the interpreter."""


class ParsePool:
    """A thread pool for which requests wait in the order of their arrival. Use from one event loop."""

    def __init__(self, *, threads: int = THREADS) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="parse")
        self._places = asyncio.Semaphore(threads + 1)  # with the next one at hand, no thread waits for the event loop

    async def run(self, function: Callable[P, T], /, *given: P.args, **named: P.kwargs) -> T:
        """Run a function in the pool; one whose caller is cancelled before it starts never runs.

        Raises:
            Exception: what the function raised.
        """
        async with self._places:
            return await self._in_thread(functools.partial(function, *given, **named))

    async def finish(self, function: Callable[P, T], /, *given: P.args, **named: P.kwargs) -> T:
        """Run what is left of a request that the model has answered: as ``run``, but before the bodies that wait."""
        return await self._in_thread(functools.partial(function, *given, **named))

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _in_thread(self, function: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.wrap_future(self._pool.submit(function))
