"""Reading large bodies beside the event loop, in a few threads of their own.

Owns how many bodies may be read at once and how many may wait for it. In threads of its own, so that what changes
settings (keys, weights, a rollback), which asyncio's common threads do, never waits behind requests; and bounded, since
a body that nobody waits for any more is still read to its end once a thread has begun.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from raymlops.serving.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 2
"""One interpreter reads one body at a time; a second thread is for those parts that let go of it."""
MOST = 16
"""Bodies that are read or wait for it: of the largest size by default, about ten seconds of work."""


class ParsePool:
    """Run functions in threads of their own, so many at once, and so many in all."""

    def __init__(self, *, threads: int = THREADS, most: int = MOST) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="parse")
        self._most = most
        self._busy = 0
        self._lock = threading.Lock()

    async def run(self, function: Callable[P, T], /, *given: P.args, **named: P.kwargs) -> T:
        """Return what the function returns. One whose caller is cancelled before it has begun is never run.

        Raises:
            Refusal: 503, too many wait already.
            Exception: what the function raised.
        """
        with self._lock:
            if self._busy >= self._most:
                raise Refusal(503, "overloaded", f"{self._busy} bodies wait to be read; try again", retry_after_s=1.0)
            self._busy += 1
        try:
            future = self._pool.submit(functools.partial(function, *given, **named))
        except RuntimeError:  # the pool is closed, or no thread can be started
            self._done()
            raise
        future.add_done_callback(self._done)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _done(self, _future: Future[Any] | None = None) -> None:
        with self._lock:
            self._busy -= 1
