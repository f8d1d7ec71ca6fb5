"""Turns of large requests beside small ones.

Owns how many large requests a replica fetches, parses and, with a quick model, answers at a time, and how long it rests
after one. All take milliseconds, partly in threads; the event loop that answers small ones gets the interpreter back
after each of them. So beside small ones there is one large request at a time, in the order of arrival, and a rest
before the next where others wait. Once no small one has come for a while, all that wait go on, and no large one waits
here.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from raymlops.serving.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

BESIDE_S = 1.0
"""How long after a small request others are taken to be beside it."""
MOST_RESTS = 3
"""The next one waits after a turn for as long as that took, once for each that waits, so many times at most: many have
a quarter of the time, or more where their turns are long."""
SHORT_S = 0.003
"""After a turn this short there is no rest: it holds up nobody, and rests would be most of the time of such bodies."""
MOST_REST_S = 0.02
OFTEN_S = 0.1
"""Small requests at this distance at most come all the time: ..."""
HOLD_S = 0.02
"""... a quick model then answers a large request within its turn, since decoding and encoding hold the interpreter as
parsing does; a slow one keeps nobody waiting for longer."""


def rest_s(took_s: float, *, waiting: int) -> float:
    """Return how long the next large request waits after a turn that took so long."""
    return 0.0 if took_s < SHORT_S else min(took_s * min(waiting, MOST_RESTS), MOST_REST_S)


class Turns:
    """The turns of one replica's requests, for which at most ``most`` wait. Use from one event loop."""

    def __init__(self, *, most: int = 32, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self.now = clock
        self._small_at = float("-inf")
        self._waiting = 0
        self._first = asyncio.Lock()
        self._free = asyncio.Event()
        self._free.set()

    def note_small(self) -> None:
        """Record that a small request came."""
        self._small_at = self.now()

    async def take(self) -> Turn | None:
        """Wait for the turn of a large request, to be ended by the caller; None where it needs none.

        Raises:
            Refusal: 503, too many wait.
        """
        if not self._waiting and self._beside_s() <= 0:
            return None
        if self._waiting >= self.most:
            raise Refusal(503, "overloaded", "too many large requests wait; try again", retry_after_s=1.0)
        self._waiting += 1
        try:
            async with self._first:
                return await self._next()
        finally:
            self._waiting -= 1

    def _beside_s(self) -> float:
        return self._small_at + BESIDE_S - self.now()

    async def _next(self) -> Turn | None:
        while (left_s := self._beside_s()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    await self._free.wait()
            except TimeoutError:
                continue  # unless another small one came meanwhile, nobody waits any longer
            self._free.clear()
            return Turn(self)
        return None

    @property
    def may_hold(self) -> bool:
        """Return whether small requests come so often that a turn lasts on while the model has its rows."""
        return self.now() - self._small_at <= OFTEN_S

    def ended(self, took_s: float) -> None:
        """Let the next one have its turn after a rest, by the time that it took to fetch and to parse this one."""
        rest = rest_s(took_s, waiting=self._waiting)
        if rest:
            asyncio.get_running_loop().call_later(rest, self._free.set)
        else:
            self._free.set()


class Turn:
    """The turn of one request."""

    __slots__ = ("_began", "_queued", "_turns")

    def __init__(self, turns: Turns) -> None:
        self._turns: Turns | None = turns
        self._began = turns.now()
        self._queued: float | None = None

    def queue(self) -> None:
        """Record that the model has the rows: the turn ends, or with small ones all the time a little later."""
        if self._turns is None:
            return
        self._queued = self._turns.now()
        if self._turns.may_hold:
            asyncio.get_running_loop().call_later(HOLD_S, self.end)
        else:
            self.end()

    def end(self) -> None:
        """Let the next one have its turn, after a rest; a second call does nothing."""
        turns, self._turns = self._turns, None
        if turns is not None:
            turns.ended((turns.now() if self._queued is None else self._queued) - self._began)
