"""Thread pool that parses large bodies outside the event loop, and encodes the answers to them.

Owns how many bodies are parsed at once, and the order. It is separate from asyncio's default pool, so that changes of
settings (keys, weights, a rollback), which run there, never wait behind requests. How many wait is bounded once: by the
requests that a replica accepts at a time, and by the turns of large ones beside small ones (see ``turns``). A thread
that outlives its request's deadline keeps its place, and its turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

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
        return await self.hold(_nothing_to_end, function, *given, **named)

    async def hold(
        self,
        leave: Callable[[], Callable[[], None]],
        function: Callable[P, T],
        /,
        *given: P.args,
        **named: P.kwargs,
    ) -> T:
        """Run a function as ``run``, of a caller that keeps others from running theirs.

        No thread can be stopped. Where the caller is cancelled while one runs the function, ``leave`` is called at
        once, and what it returns once the thread is free. Until then the place is taken too.
        """
        await self._places.acquire()
        running: Future[T] | None = None
        try:
            running = self._pool.submit(functools.partial(function, *given, **named))
            return await asyncio.wrap_future(running)
        finally:
            if running is None or running.done() or running.cancel():
                self._places.release()
            else:
                self._when_free(running, leave())

    async def finish(self, function: Callable[P, T], /, *given: P.args, **named: P.kwargs) -> T:
        """Run what is left of a request that the model has answered: as ``run``, but before the bodies that wait."""
        return await asyncio.wrap_future(self._pool.submit(functools.partial(function, *given, **named)))

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _when_free(self, running: Future[T], end: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()

        def free() -> None:
            self._places.release()
            end()

        def from_thread(_done: Future[T]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile, and nobody waits
                loop.call_soon_threadsafe(free)

        running.add_done_callback(from_thread)


def _nothing_to_end() -> Callable[[], None]:
    return lambda: None
