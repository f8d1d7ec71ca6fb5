"""Thread pool that parses large bodies outside the event loop, and encodes the answers to them.

Owns how many bodies are parsed at once and how many may be queued. It is separate from asyncio's default pool, so that
changes of settings (keys, weights, a rollback), which run there, never wait behind requests; and bounded, since a body
is parsed to its end once a thread has started, also for a client that has disconnected.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from raymlops.serving.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 1
"""The interpreter parses one body at a time; a second thread would only keep it from the event loop."""
IMAGE_THREADS = 2
"""Decoding images releases the interpreter."""
MOST = 16
"""Bodies that are parsed or queued: for the largest default size, about ten seconds of work."""


class ParsePool:
    """A thread pool with a bounded queue."""

    def __init__(self, *, threads: int = THREADS, most: int = MOST) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="parse")
        self._places = threading.BoundedSemaphore(most)

    async def run(self, function: Callable[P, T], /, *given: P.args, **named: P.kwargs) -> T:
        """Run a function in the pool; one whose caller is cancelled before it starts never runs.

        Raises:
            Refusal: 503, the queue is full.
            Exception: what the function raised.
        """
        if not self._places.acquire(blocking=False):
            raise Refusal(503, "overloaded", "too many bodies are queued for parsing; try again", retry_after_s=1.0)
        try:
            future = self._pool.submit(functools.partial(function, *given, **named))
        except RuntimeError:  # the pool is closed, or no thread can start
            self._places.release()
            raise
        future.add_done_callback(lambda _done: self._places.release())
        return await asyncio.wrap_future(future)

    async def finish(self, function: Callable[P, T], /, *given: P.args, **named: P.kwargs) -> T:
        """Run what is left of a request that the model has answered: as ``run``, but it is never refused."""
        return await asyncio.wrap_future(self._pool.submit(functools.partial(function, *given, **named)))

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
