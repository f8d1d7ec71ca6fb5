"""How many trials of a sweep may run at a time, counted again while it runs, and whether those that may do.

Owns when to count and when to look. What is counted and who holds it is the caller's to read: nodes come and go, and so
do those that hold a part of them.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from raymlops.errors import describe
from raymlops.tuning.stalls import stands_still

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raymlops.tuning.stalls import Waiter

COUNT_EVERY_S = 5.0


class Explain(Protocol):
    """Says who holds what waiting trials need; asks the cluster."""

    def __call__(self, waiters: Sequence[Waiter], *, still_s: float, running: int) -> str:
        """Return it in one line."""
        ...


class Slots:
    """The number as the last two counts have it.

    Room that is there for a moment is not the sweep's: a replica that died comes back, and Ray's view of what is free
    lags by up to a second.
    """

    def __init__(self, count: Callable[[], int], *, clock: Callable[[], float]) -> None:
        self._count = count
        self._clock = clock
        self.now = self._seen = count()
        self._counted_s = clock()

    def recount(self) -> None:
        """Count again, if it is time."""
        now_s = self._clock()
        if now_s - self._counted_s < COUNT_EVERY_S:
            return
        self._counted_s = now_s
        with suppress(Exception):  # Ray's head may be away for a moment, which costs no sweep
            seen = self._count()
            least, most = sorted((seen, self._seen))
            self.now, self._seen = min(max(self.now, least), most), seen


class Standstill:
    """Knows when something last moved."""

    def __init__(self, explain: Explain | None, *, clock: Callable[[], float]) -> None:
        self._explain = explain
        self._clock = clock
        self._moved_s = clock()
        self._told_s: float | None = None

    def moved(self) -> None:
        """Take in that a trial started, reported or ended."""
        self._moved_s = self._clock()

    def look(self, waiters: Sequence[Waiter], *, busy: int) -> str:
        """Return what is to be told now, of the ``waiters`` among all trials that are ``busy``; mostly nothing."""
        now_s = self._clock()
        still_s = stands_still(waiters, now_s=now_s, moved_s=self._moved_s, told_s=self._told_s)
        if still_s is None or self._explain is None:
            return ""
        self._told_s = now_s
        try:
            return self._explain(waiters, still_s=still_s, running=busy - len(waiters))
        except Exception as error:
            return (
                f"nothing has moved for {still_s:.0f} s: {len(waiters)} trials wait for room, "
                f"and who holds it cannot be read: {describe(error)}"
            )
