"""What is told of data beside its drift: missing values, values out of the reference's range, new categories. Pure.

Owns the shares, by profiles on the reference's layout, and what a finding is. The same of a split before a run, with
train as the reference, and of a window of traffic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raymlops.display import some_of
from raymlops.monitor.chosen_categories import rows_too_many
from raymlops.records import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from raymlops.profiles.layout import Cells, Series
    from raymlops.profiles.profile import Profile

    Counted = Callable[[Series, Cells], int]

_SIGMAS = 5.0
"""What chance may add to a share in the worst of 2,000 columns: 5 standard deviations, once in 3.5 million."""


@dataclass(frozen=True)
class Finding(Record):
    """What a check found beyond its bound."""

    check: str
    where: str
    """A split, or a window."""
    got: float
    allowed: float
    message: str
    refused: bool = False
    """Whether it ends what it was found before; else it is a warning."""


@dataclass(frozen=True)
class Shares(Record):
    """A share of the reference's rows, and of others."""

    before: float
    after: float
    chance: float = 0.0
    """What chance may make of ``after``, where both are of one distribution."""

    @property
    def risen(self) -> float:
        """Return how much larger it is than before, beyond chance."""
        return max(0.0, self.after - self.before - self.chance)


@dataclass(frozen=True)
class ColumnQuality(Record):
    """The shares of one column; None where it has no such values."""

    column: str
    nulls: Shares
    out_of_range: Shares | None = None
    """Below and above nearly all values of the reference, infinities included."""
    new_categories: Shares | None = None
    """Texts that few rows of the reference have, or none."""


def column_quality(reference: Profile, other: Profile) -> list[ColumnQuality]:
    """Return the shares of each column that both have rows of.

    Times are left out of ranges: they move on.

    Raises:
        ValueError: they are on different layouts.
    """
    if reference.layout.digest != other.layout.digest:
        msg = "the profiles are on different layouts"
        raise ValueError(msg)
    return list(_qualities(reference, other))


def _qualities(reference: Profile, other: Profile) -> Iterator[ColumnQuality]:
    for series, cells in reference.layout.placed():
        sides = reference.counts[cells], other.counts[cells]
        if series.missing is None or not all(side.sum() for side in sides):
            continue
        name = (
            series.column if series.measure in {"number", "time", "category"} else f"{series.column} ({series.measure})"
        )
        is_text = series.measure == "category" and all(
            beside.measure != "mean" for beside, _ in reference.layout.by_column[series.column]
        )
        yield ColumnQuality(
            name,
            _shares(series, sides, _nulls),
            _shares(series, sides, _outside) if len(series.edges) and series.measure != "time" else None,
            _shares(series, sides, _unknown) if is_text else None,
        )


def _shares(series: Series, sides: tuple[Cells, Cells], count: Counted) -> Shares:
    (before, rows), (after, others) = ((count(series, side), int(side.sum())) for side in sides)
    p = before / rows
    chance = _SIGMAS * math.sqrt(p * (1 - p) * (1 / rows + 1 / others))
    if count is _unknown:  # Training has fewer of them by how its categories were chosen.
        chance += rows_too_many(sides[0][series.bins]) / rows
    return Shares(p, after / others, chance)


def _nulls(series: Series, counts: Cells) -> int:
    return int(counts[series.missing])


def _outside(series: Series, counts: Cells) -> int:
    bins = counts[series.bins]
    return int(counts[:-1].sum() - bins[1:-1].sum())


def _unknown(series: Series, counts: Cells) -> int:
    return int(counts[len(series.categories)])


def named(columns: Iterable[tuple[str, float]]) -> str:
    """Return columns with their shares, the largest first, a few of many."""
    return some_of([f"{name} {share:.1%}" for name, share in sorted(columns, key=lambda each: -each[1])])
