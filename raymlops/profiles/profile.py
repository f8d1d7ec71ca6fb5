"""Profiles: the rows of a table, or of consecutive parts of it, counted on a layout.

Owns what may be added up. Adding is exact: counts are integers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raymlops.profiles.layout import ROWS, SQUARES, Cells, Layout

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from raymlops.profiles.layout import Series
    from raymlops.profiles.measures import Measure

_MOST_SQUARES = 1 << 53
"""Of one sum of squared weights, so that those of 1,000 hours add up."""


@dataclass(frozen=True, eq=False)
class Profile:
    """Counts of rows, ``layout.size`` of them. ``a + b`` is the profile of the rows of both."""

    layout: Layout
    counts: Cells

    @classmethod
    def weighted(cls, parts: Mapping[float, Profile], layout: Layout) -> Profile:
        """Return the profile of rows each of which stands for as many as its weight.

        Every count is within 1 of the sum of weights, and that of a series is the sum of weights, rounded. Of m rows
        that are drawn together, with a probability of 1 / w, the squares are those of m w rows that are no sample, m w,
        and what drawing adds to the variance of their sum, (w - 1) w m^2: Horvitz and Thompson, "A generalization of
        sampling without replacement from a finite universe", J. Am. Stat. Assoc. 47 (1952).
        """
        counts = np.zeros(layout.size)
        for weight, part in parts.items():
            part._check(layout)  # noqa: SLF001 - of this class
            counts += weight * part.counts
        whole = np.rint(counts).astype(np.int64)
        squares = (w * part.rows + (w - 1) * w * int(part.counts[SQUARES]) for w, part in parts.items())
        whole[SQUARES] = min(round(sum(squares)), _MOST_SQUARES)
        for _, cells in layout.placed():
            whole[cells] = np.diff(np.rint(np.cumsum(counts[cells])).astype(np.int64), prepend=0)
        return cls(layout, whole)

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return int(self.counts[ROWS])

    @property
    def read(self) -> int:
        """Return how many rows that are no sample say as much: all that were read where each was drawn on its own.

        That is the effective sample size of Kish (1965): the squared sum of the weights over the sum of their squares.
        Of requests of many rows, of which few are drawn, it is about their number. It is ``rows`` where they are no
        sample.
        """
        squares = int(self.counts[SQUARES])
        return round(self.rows**2 / squares) if squares else 0

    @property
    def drawn(self) -> float:
        """Return the variance that drawing a sample adds to a mean of unit variance; 0 of rows that are none."""
        return max(1 / self.read - 1 / self.rows, 0.0) if self.read else 0.0

    def design_effect(self, at: int) -> float:
        """Return how many times the variance of independent rows that of the series ``at`` a place is, at least 1.

        That is 1 + r P / n of n rows that have P pairs in one request, (i, j) and (j, i), and r the correlation of
        these: Kish, "Survey Sampling" (1965), section 5.4. Few requests tell r badly: it is a standard error higher.
        One single request tells none, and rows of a sample are counted by request anyway.
        """
        series, cells = [*self.layout.placed()][at]
        pairs, *others = self.counts[self.layout.alike].tolist()
        both, absent = others[2 * at : 2 * at + 2]
        if not pairs or series.missing is None or self.read != self.rows:
            return 1.0
        shares = self.counts[cells] / self.rows
        null, present = shares[series.missing], np.delete(shares, series.missing)
        if series.is_ordered:
            usual, square = float(shares @ series.places) ** 2, float(shares @ series.places**2)
        else:
            usual, square = float(present @ present), float(present.sum())
        related = (both / pairs - usual) / max(square - usual, 1e-9)
        nulls = (absent / pairs - null**2) / max(null - null**2, 1e-9)
        error = math.sqrt(2 * (pairs + self.rows)) / self.rows
        return float(1 + max(0.0, related, nulls) * (1 + error) * pairs / self.rows)

    def series(self, column: str, measure: Measure | None = None) -> tuple[Series, Cells]:
        """Return a series of a column, by default its first one, and its counts.

        Raises:
            KeyError: there is none.
        """
        for series, cells in self.layout.by_column.get(column, ()):
            if measure in {None, series.measure}:
                return series, self.counts[cells]
        raise KeyError(column if measure is None else (column, measure))

    def __add__(self, other: Profile) -> Profile:
        other._check(self.layout)
        return Profile(self.layout, self.counts + other.counts)

    def _check(self, layout: Layout) -> None:
        if self.layout is not layout and self.layout.digest != layout.digest:
            msg = "profiles on different layouts do not add up"
            raise ValueError(msg)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Profiles of consecutive parts of a table, in order: ``counts`` is (blocks, layout.size)."""

    layout: Layout
    counts: Cells
    times: npt.NDArray[np.float64] | None = None
    """When each block begins and the last one ends, in seconds since 1970; None where rows have no time."""
    drawn: float = 0.0
    """Of each block, as of a profile: the least."""

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def rows(self) -> Cells:
        """Return the rows of each block."""
        return np.asarray(self.counts[:, ROWS])
