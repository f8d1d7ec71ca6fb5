"""What a version did while several were up: counts of its requests, and the losses of its labelled answers.

Owns both values and how they add up over replicas. Knows nothing of who counts them, nor of what they decide.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LEVELS = 101
"""Losses are kept in hundredths: 0.00, 0.01, ..., 1.00."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests that the traffic's weights gave to a version, and what became of them.

    Those that a caller pinned, copies for shadows and refused ones are in none of them: they fell to a version for
    another reason than chance, or say nothing of it.
    """

    requests: int = 0
    """All of them, the failed and late ones too."""
    errors: int = 0
    """Where the version failed, whoever answered in the end."""
    slow: int = 0
    """Answered, but after ``slow_s`` in the model."""
    late: int = 0
    """Of a canary: not answered within its timeout, so that the champion did. Not among ``errors`` and ``slow``."""
    seconds_sum: float = 0.0
    """In the model."""

    def __add__(self, other: Counts) -> Counts:
        """Return the counts of both, as of two replicas."""
        return Counts(
            requests=self.requests + other.requests,
            errors=self.errors + other.errors,
            slow=self.slow + other.slow,
            late=self.late + other.late,
            seconds_sum=self.seconds_sum + other.seconds_sum,
        )

    def __sub__(self, other: Counts) -> Counts:
        """Return what was counted since ``other``; never below 0, which a replica that started anew would give."""
        return Counts(
            requests=max(0, self.requests - other.requests),
            errors=max(0, self.errors - other.errors),
            slow=max(0, self.slow - other.slow),
            late=max(0, self.late - other.late),
            seconds_sum=max(0.0, self.seconds_sum - other.seconds_sum),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Counts:
        """Rebuild them; unknown keys are ignored, what is missing or null is 0."""
        return cls(**{item.name: data.get(item.name) or 0 for item in fields(cls)})


@dataclass(frozen=True, slots=True)
class Losses:
    """How wrong the labelled answers of requests were, 0 (right) to 1: how many of each hundredth, one a request.

    Chance gives requests to versions, not rows: a request is one draw however many rows it has. Their sum over replicas
    or days is exact, and it stays small however many there are. Rounding moves a mean by at most 0.005, and that of
    equally good versions by the same.
    """

    levels: tuple[tuple[int, int], ...] = ()
    """Hundredths and their number, rising, without zeros."""
    clipped: int = 0
    """Requests whose loss is no measure: most of their errors are beyond the scale, or had no number."""
    note: str = ""
    """Why there are none, or which failed; empty where nothing is to be said."""

    @classmethod
    def of(cls, values: Iterable[float], *, clipped: int = 0, note: str = "") -> Losses:
        """Count losses. Those outside [0, 1] count as the nearer end, NaN as 1: nothing is worse than no number."""
        return cls(cls._levels(Counter(_hundredth(value) for value in values)), clipped, note)

    @property
    def mostly_clipped(self) -> bool:
        """Return whether they are no measure, so that nothing follows from their mean."""
        return 2 * self.clipped > self.count

    @property
    def count(self) -> int:
        """Return how many there are."""
        return sum(number for _, number in self.levels)

    @property
    def mean(self) -> float:
        """Return their mean; NaN where there are none."""
        total = self.count
        return sum(level * number for level, number in self.levels) / (100 * total) if total else math.nan

    def __add__(self, other: Losses) -> Losses:
        """Return the losses of both."""
        both = Counter(dict(self.levels)) + Counter(dict(other.levels))
        return Losses(self._levels(both), self.clipped + other.clipped, self.note or other.note)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        said = {"clipped": self.clipped, "note": self.note}
        levels: dict[str, Any] = {str(level): number for level, number in self.levels}
        return levels | {name: value for name, value in said.items() if value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Losses:
        """Rebuild them; what is no hundredth or no positive number is ignored."""
        known = {str(level): level for level in range(LEVELS)}
        counts = Counter(
            {known[key]: int(number) for key, number in data.items() if key in known and (number or 0) > 0}
        )
        return cls(cls._levels(counts), data.get("clipped") or 0, data.get("note") or "")

    @staticmethod
    def _levels(counter: Counter[int]) -> tuple[tuple[int, int], ...]:
        return tuple(sorted(counter.items()))


def _hundredth(value: float) -> int:
    return LEVELS - 1 if math.isnan(value) else round(min(1.0, max(0.0, value)) * (LEVELS - 1))
