"""How a sweep stands by the trials that have ended: how many, which is the best, how many since.

Pure. The best of several objectives is by the first; who wins in the end is ``select``'s to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

    from raymlops.records import TrialRecord


@dataclass
class Tally:
    """Counts trials as they end."""

    mode: str
    best: TrialRecord | None = None
    """Of those that ran to their end and keep the constraints."""
    since_best: int = 0
    """Trials of the sweep's own that have ended since, those that failed aside."""
    ended: int = 0
    """Trials of the sweep's own."""

    @classmethod
    def of(cls, records: Iterable[TrialRecord], *, mode: str) -> Self:
        """Return the tally of trials in the order in which they ended."""
        tally = cls(mode)
        for record in records:
            tally.take(record)
        return tally

    def take(self, record: TrialRecord) -> bool:
        """Take in a trial that ended; return whether it is the best so far."""
        own = not record.carried_from
        self.ended += own
        if record.status == "failed":
            return False
        self.since_best += own
        if record.status != "complete" or record.value is None or not record.feasible:
            return False
        sign = 1.0 if self.mode == "min" else -1.0
        if self.best is not None and self.best.value is not None and sign * self.best.value <= sign * record.value:
            return False
        self.best, self.since_best = record, 0
        return True
