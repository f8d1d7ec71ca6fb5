"""A layout: the cells in which the rows of columns are counted.

Owns which cell a value belongs to, and where each is in the one array of counts. Every cell counts rows. Knows nothing
of where a layout comes from; see ``learn``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raymlops.profiles.distinct import REGISTERS
from raymlops.profiles.scores import number_of_sums

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.profiles.measures import Measure
    from raymlops.profiles.scores import Score

Cells = npt.NDArray[np.int64]
Edges = npt.NDArray[np.float64]

ROWS, SQUARES = 0, 1
"""The first two cells of a profile: its rows, and of a sample the square of what each thing that was drawn stands for,
summed; of rows that are no sample 1 each. See ``Profile.weighted``."""
HEAD = 2
_LARGEST = float(np.finfo(np.float64).max)
_TINY = 1e-300
_ROUNDED = 1e-6
"""Of a number, by which rounding to 32 bits may have moved it, eight times over."""
_OCTAVES = np.arange(-6, 61)
"""Powers of 2 times the span of the edges, at which there are more of them in a wider layout."""
_NONE = np.zeros(0)


@dataclass(frozen=True, eq=False)
class Series:
    """One measure of a column and its cells.

    ``distinct`` has the registers of ``distinct``, ``category`` a bin for each category and one for all others; every
    other measure has a bin between each two ``edges`` and the two tails: bin i holds edges[i - 1] <= value < edges[i].
    Missing values have a cell of their own, and so have both infinities.
    """

    column: str
    measure: Measure
    edges: Edges = field(default_factory=lambda: _NONE)
    categories: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Return the number of cells."""
        return {"distinct": REGISTERS, "category": len(self.categories) + 2}.get(self.measure, len(self.edges) + 4)

    @property
    def bin_edges(self) -> npt.NDArray[np.float64]:
        """Return where the bins of ordered values begin, and where the last one ends; the outer two have no end."""
        return np.array([-np.inf, *self.edges, np.inf])

    @property
    def widened(self) -> Series:
        """Return it with bins far beyond the outermost edges, the end of each twice as far out as that of the last.

        Edges that lie so close together that rounding explains it are left out.
        """
        if not len(self.edges) or not self.is_ordered:
            return self
        low, high = float(self.edges[0]), float(self.edges[-1])
        least = max(_ROUNDED * max(abs(low), abs(high)), _TINY)
        if high - low > least:
            steps, inner = (high - low) * 2.0**_OCTAVES, self.edges
        else:
            steps, inner = least * 2.0 ** _OCTAVES[_OCTAVES >= 0], self.edges[:0]
        edges = np.concatenate([low - steps, inner, high + steps])
        return replace(self, edges=np.unique(edges[np.abs(edges) < _LARGEST]))

    @property
    def bins(self) -> slice:
        """Return which of the cells are bins: of values that are there, and finite."""
        if self.measure == "distinct":
            return slice(0, REGISTERS)
        return slice(0, self.size - 1) if self.measure == "category" else slice(1, self.size - 2)

    @property
    def is_ordered(self) -> bool:
        """Return whether a bin holds larger values than the one before it."""
        return self.measure not in {"category", "distinct"}

    @property
    def shown_edges(self) -> list[float]:
        """Return the edges as people read them: many are the next number beside a round one."""
        return [0.0 if abs(edge) < _TINY else float(f"{edge:.12g}") for edge in self.edges.tolist()]

    @property
    def missing(self) -> int | None:
        """Return the cell of missing values."""
        return None if self.measure == "distinct" else self.size - 1

    def cells_of(self, values: Any) -> Cells:
        """Return the cell of each value of this measure; of ``distinct``, -1 for a missing one."""
        if self.measure == "distinct":
            return np.asarray(values, np.int64)
        if self.measure == "category":
            found = pc.fill_null(pc.index_in(values, value_set=self._value_set), len(self.categories))
            cells = np.array(found.to_numpy(zero_copy_only=False), np.int64)
            absent = values.is_null().to_numpy(zero_copy_only=False) if values.null_count else False
        else:
            # Beyond the largest number is infinity; NaN is sorted behind it.
            cells = np.searchsorted(self._bounds, values, side="right")
            absent = np.isnan(values)
        if np.any(absent):
            cells[absent] = self.size - 1
        return cells

    def counts_of(self, values: Any) -> Cells:
        """Return how many values are in each cell: of numbers, in a tenth of the time that ``cells_of`` takes.

        Of a category its values' cells are given.
        """
        if not self.is_ordered:
            cells = values if self.measure == "category" else self.cells_of(values)
            return np.bincount(cells[cells >= 0], minlength=self.size)
        ascending = np.sort(values)  # with vector instructions, and NaN last
        below = np.searchsorted(ascending, np.append(self._bounds, np.nan))
        return np.diff(below, prepend=0, append=len(ascending))

    def alike(self, values: Any, requests: Cells) -> tuple[int, int]:
        """Return over the pairs of rows of a request, (i, j) and (j, i), how many have one category, and how many none.

        Of ordered values the first is the sum of products of their ``places``. Of a category its cells are given.
        """
        if self.missing is None:
            return 0, 0
        cells = values if self.measure == "category" else self.cells_of(values)
        absent = cells == self.missing
        if self.is_ordered:
            places = self.places[cells]
            both = (np.bincount(requests, places) ** 2).sum() - (places**2).sum()
        else:
            _, of_one = np.unique((requests * self.size + cells)[~absent], return_counts=True)
            both = (of_one * (of_one - 1)).sum()
        nulls = np.bincount(requests, absent)
        return int(both), int((nulls * (nulls - 1)).sum())

    @cached_property
    def places(self) -> npt.NDArray[np.float64]:
        """Return the place of each cell of ordered values around the middle one; 0 of a missing value."""
        return np.append(2.0 * np.arange(self.size - 1) - (self.size - 2), 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "column": self.column,
            "measure": self.measure,
            "edges": self.edges.tolist(),
            "categories": list(self.categories),
        }

    @cached_property
    def _bounds(self) -> Edges:
        return np.concatenate([[-_LARGEST], self.edges, [_LARGEST]])

    @cached_property
    def _value_set(self) -> pa.Array:
        return pa.array(self.categories, pa.string())


@dataclass(frozen=True, eq=False)
class Layout:
    """The cells of a table's columns, one series after the other in one array, after ``ROWS`` and ``SQUARES``.

    Behind them are the sums of ``scores``, and then of pairs of rows of one request; both count no rows.
    """

    series: tuple[Series, ...]
    scores: tuple[Score, ...] = ()

    @cached_property
    def widened(self) -> Layout:
        """Return it with numbers told apart far beyond the outermost edges, and without scores."""
        return Layout(tuple(series.widened for series in self.series))

    @cached_property
    def size(self) -> int:
        """Return the number of cells."""
        return HEAD + sum(series.size for series in self.series) + number_of_sums(len(self.scores)) + self._alike

    @cached_property
    def sums(self) -> slice:
        """Return the cells of the sums of scores."""
        stop = self.size - self._alike
        return slice(stop - number_of_sums(len(self.scores)), stop)

    @cached_property
    def alike(self) -> slice:
        """Return the cells of pairs of rows of one request: their number, then ``Series.alike`` of each series."""
        return slice(self.size - self._alike, self.size)

    @property
    def _alike(self) -> int:
        return 1 + 2 * len(self.series)

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the layout: counts add where it is the same."""
        digest = hashlib.sha256()
        for series in self.series:
            texts = (series.column, series.measure, *series.categories)
            digest.update("\0".join([str(len(texts)), *texts]).encode("utf-8", "surrogatepass"))
            digest.update(series.edges.astype("<f8").tobytes())
        for score in self.scores:
            digest.update(f"score\0{score.column}\0{score.category}".encode("utf-8", "surrogatepass"))
            digest.update(score.edges.astype("<f8").tobytes())
        return digest.hexdigest()

    @cached_property
    def by_column(self) -> dict[str, list[tuple[Series, slice]]]:
        """Return each column's series and the cells that it has."""
        found: dict[str, list[tuple[Series, slice]]] = {}
        for series, cells in self.placed():
            found.setdefault(series.column, []).append((series, cells))
        return found

    def placed(self) -> Iterator[tuple[Series, slice]]:
        """Yield each series and the cells that it has."""
        start = HEAD
        for series in self.series:
            yield series, slice(start, start + series.size)
            start += series.size
