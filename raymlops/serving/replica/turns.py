"""Turns of large requests beside small ones.

Owns how many large requests a replica works on at a time, and how long it rests after one. Work on a large request
takes milliseconds, partly in threads; the event loop that answers small ones gets the interpreter back after each of
them. So beside small ones there is one large request at a time, and a rest before the next where several wait. Where no
small ones come, large ones do not wait for each other here.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from raymlops.serving.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

MOST = 16
"""Large requests that may wait."""
BESIDE_S = 1.0
"""How long after a small request others are taken to be beside it."""
MOST_REST = 3
"""The next one waits after a large request for as long as that one took, once for each that waits, so many times at
most: a large one alone never waits, and many have a quarter of the time."""


class Turns:
    """The turns of one replica's requests. Use from one event loop."""

    def __init__(self, *, most: int = MOST, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._small_at = float("-inf")
        self._waiting = 0
        self._lock = asyncio.Lock()
        self._rest_until = float("-inf")

    def note_small(self) -> None:
        """Record that a small request came."""
        self._small_at = self._clock()

    async def take(self) -> Turn | None:
        """Wait for the turn of a large request, to be ended by the caller; None where it need not wait.

        Raises:
            Refusal: 503, too many wait.
        """
        if self._clock() - self._small_at > BESIDE_S:
            return None
        if self._waiting >= self._most:
            raise Refusal(503, "overloaded", "too many large requests wait; try again", retry_after_s=1.0)
        self._waiting += 1
        try:
            await self._lock.acquire()
        finally:
            self._waiting -= 1
        try:
            await asyncio.sleep(self._rest_until - self._clock())
        except asyncio.CancelledError:
            self._lock.release()
            raise
        return Turn(self._end, self._clock())

    def _end(self, began: float) -> None:
        now = self._clock()
        self._rest_until = now + min(self._waiting, MOST_REST) * (now - began)
        self._lock.release()


class Turn:
    """The turn of one request."""

    __slots__ = ("_began", "_end")

    def __init__(self, end: Callable[[float], None], began: float) -> None:
        self._end: Callable[[float], None] | None = end
        self._began = began

    def end(self) -> None:
        """Let the next one have its turn, after a rest; a second call does nothing."""
        end, self._end = self._end, None
        if end is not None:
            end(self._began)
