"""What was read of a recipe's splits, as far as it is checked. Pure: knows neither splits nor bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.profiles.profile import Profile
    from raymlops.training.data_checks.distinct_rows import DistinctRows

    Array = npt.NDArray[Any]

CLASSES = 100
"""Labels of at most so many different values are classes; others are numbers."""


def missing(values: Array) -> npt.NDArray[np.bool_]:
    """Return which values of a column are missing; of arrays and of integers none is."""
    if values.dtype == object:
        return np.array([value is None for value in values], np.bool_)
    if values.ndim > 1 or values.dtype.kind not in "fM":
        return np.zeros(len(values), np.bool_)
    return np.isnan(values) if values.dtype.kind == "f" else np.isnat(values)


def is_constant(values: Array) -> bool:
    """Return whether a column has one value in all rows, such as none at all; of arrays that differ in size never."""
    if not len(values) or (isinstance(values[0], np.ndarray) and values.dtype == object):
        return False
    gone = missing(values)
    if gone.any():
        return bool(gone.all())
    return bool((values[:100] == values[:1]).all() and (values == values[:1]).all())


@dataclass(frozen=True)
class LabelFacts:
    """The labels of the rows that were read; of labels that are arrays nothing is known but their number."""

    name: str
    rows: int
    missing: int = 0
    unusable: str = ""
    """What ``target`` makes of missing ones, where that is no number."""
    classes: Mapping[Any, int] = field(default_factory=dict)
    """Rows by label, where it has at most ``CLASSES`` values."""
    numbers: Array | None = None
    """In order, where it has numbers."""
    constant: str = ""
    """The one value that all rows have, where ``target`` makes one of it too."""

    def distance(self, other: LabelFacts) -> tuple[float, float] | None:
        """Return how far other labels are from these, from 0 to 1, and what chance makes of that; None where unknown.

        Total variation of classes, of which chance makes the half sum of the mean deviations of their shares; of
        numbers the largest difference of the distribution functions (Smirnov, 1948), which chance takes beyond 1.63 of
        its scale once in a hundred.
        """
        if self.classes and other.classes:
            rows, others = sum(self.classes.values()), sum(other.classes.values())
            share = {label: count / rows for label, count in self.classes.items()}
            labels = {*self.classes, *other.classes}
            far = sum(abs(share.get(label, 0.0) - other.classes.get(label, 0) / others) for label in labels) / 2
            scale = math.sqrt(2 / math.pi * (1 / rows + 1 / others))
            return far, sum(math.sqrt(p * (1 - p)) for p in share.values()) / 2 * scale
        if self.numbers is None or other.numbers is None or not len(self.numbers) or not len(other.numbers):
            return None
        values = np.concatenate([self.numbers, other.numbers])
        below = [np.searchsorted(side, values, side="right") / len(side) for side in (self.numbers, other.numbers)]
        scale = math.sqrt(1 / len(self.numbers) + 1 / len(other.numbers))
        return float(np.abs(below[0] - below[1]).max()), 1.63 * scale


@dataclass(frozen=True)
class BoundedInput:
    """An input in the rows that were read, by what a configuration may bound; None where it has no such values."""

    nulls: float
    least: float | None = None
    most: float | None = None
    others: tuple[str, ...] = ()
    """A few of the values that the configuration does not list."""


@dataclass(frozen=True)
class SplitFacts:
    """What was read of one split."""

    name: str
    rows: int
    identity: str
    """The digest that identifies its rows."""
    read: int = 0
    """Rows that were read."""
    looked_at: int = 0
    """Of them those whose columns were looked at."""
    distinct: DistinctRows | None = None
    label: LabelFacts | None = None
    profile: Profile | None = None
    """On the layout of train."""
    constant: tuple[str, ...] = ()
    """Inputs with one value in all rows that were looked at."""
    as_label: tuple[str, ...] = ()
    """Inputs that equal the label there."""
    bounded: Mapping[str, BoundedInput] = field(default_factory=dict)
    """Of the inputs that the configuration bounds."""

    @property
    def share_read(self) -> float:
        """Return the share of its rows that were read."""
        return self.read / self.rows if self.rows else 0.0
