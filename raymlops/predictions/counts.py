"""Per-version counts of requests and losses of labelled answers, which rollouts compare. Pure.

Owns both values and how they add up over replicas.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, astuple, dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LEVELS = 101
"""Losses are kept in hundredths: 0.00, 0.01, ..., 1.00."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests that the traffic's weights assigned to a version, and their outcomes.

    Pinned requests, copies for shadows and those that were rejected before the model ran are not counted: they were not
    assigned by chance, or say nothing about the version.
    """

    requests: int = 0
    """Failed and late ones included."""
    errors: int = 0
    """Where the version failed, even if another one answered."""
    slow: int = 0
    """Answered after more than ``slow_s`` in the model."""
    late: int = 0
    """Of a canary: timed out, so that the champion answered. Not included in ``errors`` and ``slow``."""
    seconds_sum: float = 0.0
    """In the model."""
    refused: int = 0
    """Answered that the recipe rejects the rows. Not included in ``errors``."""

    def __add__(self, other: Counts) -> Counts:
        """Return the counts of both, as of two replicas."""
        return Counts(*(ours + theirs for ours, theirs in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Counts) -> Counts:
        """Return what was counted since ``other``; never below 0, which a restarted replica would give."""
        return Counts(*(max(0, ours - theirs) for ours, theirs in zip(astuple(self), astuple(other), strict=True)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Counts:
        """Rebuild counts; unknown keys are ignored, missing or null ones are 0."""
        return cls(**{item.name: data.get(item.name) or 0 for item in fields(cls)})


@dataclass(frozen=True, slots=True)
class Losses:
    """A histogram of the losses of labelled requests, 0 (right) to 1, in hundredths; one loss a request.

    Requests are assigned to versions by chance, rows are not: a request is one draw however many rows it has. Sums over
    replicas or days are exact and of constant size. Who counts losses that are smaller than a hundredth rounds them so
    that their mean stays.
    """

    levels: tuple[tuple[int, int], ...] = ()
    """Hundredths and their counts, ascending, without zeros."""
    clipped: int = 0
    """Requests whose loss is not meaningful: most of their errors exceed the scale or are not numbers."""
    note: str = ""
    """Why none was counted, or which failed; empty otherwise."""
    weighted: tuple[float, float] | None = None
    """Sum of the weights, and of the losses by weight, where a request stands for others too; None where none does.

    The evidence is in the counts: chance gave each of them to a version, in a sample of the requests too.
    """

    @classmethod
    def of(
        cls, values: Iterable[float], *, weights: Iterable[float] | None = None, clipped: int = 0, note: str = ""
    ) -> Losses:
        """Count losses. Those outside [0, 1] are clamped, NaN counts as 1, the worst.

        ``weights`` says for how many requests each one stands; without them it is one.
        """
        levels = [_hundredth(value) for value in values]
        numbers = [1.0] * len(levels) if weights is None else [*weights]
        sums = math.fsum(numbers), math.fsum(n * level / 100 for n, level in zip(numbers, levels, strict=True))
        is_sample = any(number != 1 for number in numbers)
        return cls(cls._levels(Counter(levels)), clipped, note, sums if is_sample else None)

    @property
    def mostly_clipped(self) -> bool:
        """Return whether most losses are not meaningful, so that their mean is not either."""
        return 2 * self.clipped > self.count

    @property
    def count(self) -> int:
        """Return the number of losses."""
        return sum(number for _, number in self.levels)

    @property
    def mean(self) -> float:
        """Return their mean; NaN without any."""
        weights, losses = self._sums
        return losses / weights if weights else math.nan

    @property
    def _sums(self) -> tuple[float, float]:
        """Return the sum of the weights, and of the losses by weight."""
        return self.weighted or (float(self.count), sum(level * number for level, number in self.levels) / 100)

    def __add__(self, other: Losses) -> Losses:
        """Return the losses of both."""
        both = Counter(dict(self.levels)) + Counter(dict(other.levels))
        (ours, our_losses), (theirs, their_losses) = self._sums, other._sums
        sums = (ours + theirs, our_losses + their_losses) if self.weighted or other.weighted else None
        return Losses(self._levels(both), self.clipped + other.clipped, self.note or other.note, sums)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        extra = {"clipped": self.clipped, "note": self.note, "weighted": self.weighted and [*self.weighted]}
        levels: dict[str, Any] = {str(level): number for level, number in self.levels}
        return levels | {name: value for name, value in extra.items() if value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Losses:
        """Rebuild losses; keys that are not hundredths and counts that are not positive are ignored."""
        known = {str(level): level for level in range(LEVELS)}
        counts = Counter(
            {known[key]: int(number) for key, number in data.items() if key in known and (number or 0) > 0}
        )
        weighted = tuple(map(float, data.get("weighted") or ()))
        sums = (weighted[0], weighted[1]) if len(weighted) == 2 else None
        return cls(cls._levels(counts), data.get("clipped") or 0, data.get("note") or "", sums)

    @staticmethod
    def _levels(counter: Counter[int]) -> tuple[tuple[int, int], ...]:
        return tuple(sorted(counter.items()))


def _hundredth(value: float) -> int:
    return LEVELS - 1 if math.isnan(value) else round(min(1.0, max(0.0, value)) * (LEVELS - 1))
