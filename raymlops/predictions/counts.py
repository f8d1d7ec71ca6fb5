"""Per-version counts of requests and losses of labelled answers, which rollouts compare. Pure.

Owns both values and how they add up over replicas.
"""

from __future__ import annotations

import math
from dataclasses import asdict, astuple, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

POWERS = 3
"""Of gains that are summed: the powers 0 to 2."""


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
    """The losses of labelled requests, 0 (right) to 1, and what their answers gain over a blind predictor, in sums.

    A gain is the loss of a predictor that knows nothing of the row, less the loss of the answer. Requests are assigned
    to versions by chance, rows are not: a request is one draw however many rows it has. Sums over replicas or days are
    of constant size.
    """

    gains: tuple[float, ...] = (0.0,) * POWERS
    """Sums of the powers 0 to 2 of each request's gain; the first is the number of requests."""
    extremes: tuple[float, float] = (0.0, 0.0)
    """The least gain of a request and the largest, or 0."""
    total: float = 0.0
    """The sum of the losses."""
    clipped: int = 0
    """Requests whose loss is not meaningful: most of their errors exceed the scale or are not numbers."""
    note: str = ""
    """Why none was counted, or which failed; empty otherwise."""

    @classmethod
    def of(cls, losses: Any, blind: Any, *, clipped: int = 0, note: str = "") -> Losses:
        """Sum up the losses of requests, and of a blind predictor for the same ones."""
        values = np.asarray(losses, dtype=np.float64)
        gains = np.asarray(blind, dtype=np.float64) - values
        powers = (gains[:, None] ** np.arange(POWERS)).sum(axis=0)
        extremes = float(gains.min(initial=0.0)), float(gains.max(initial=0.0))
        return cls(tuple(powers.tolist()), extremes, float(values.sum()), clipped, note)

    @property
    def mostly_clipped(self) -> bool:
        """Return whether most losses are not meaningful, so that their mean is not either."""
        return 2 * self.clipped > self.count

    @property
    def count(self) -> int:
        """Return the number of requests."""
        return round(self.gains[0])

    @property
    def mean(self) -> float:
        """Return their mean loss; NaN without any."""
        return self.total / self.gains[0] if self.gains[0] else math.nan

    @property
    def gain(self) -> float:
        """Return their mean gain; NaN without any."""
        return self.gains[1] / self.gains[0] if self.gains[0] else math.nan

    def __add__(self, other: Losses) -> Losses:
        """Return the losses of both."""
        return Losses(
            tuple(ours + theirs for ours, theirs in zip(self.gains, other.gains, strict=True)),
            (min(self.extremes[0], other.extremes[0]), max(self.extremes[1], other.extremes[1])),
            self.total + other.total,
            self.clipped + other.clipped,
            self.note or other.note,
        )

    def times(self, factor: float) -> Losses:
        """Return the losses of so many times as many requests that are alike."""
        gains = tuple(factor * each for each in self.gains)
        return Losses(gains, self.extremes, factor * self.total, round(factor * self.clipped), self.note)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        lists = {"gains": [*self.gains], "extremes": [*self.extremes]}
        return {name: value for name, value in asdict(self).items() if value} | lists

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Losses:
        """Rebuild losses; there are none in data without gains."""
        if "gains" not in data:
            return cls(note=data.get("note") or "")
        known = {item.name: data[item.name] for item in fields(cls) if item.name in data}
        return cls(**{**known, "gains": tuple(data["gains"][:POWERS]), "extremes": tuple(data["extremes"])})
