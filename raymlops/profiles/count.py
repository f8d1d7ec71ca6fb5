"""Count the rows of a table on a layout, in one pass and constant memory.

On one core of two shared ones 35 to 40 million numbers a second, 15 million categories that are Python strings, and
more that Arrow holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.profiles.layout import READ, ROWS, Cells, Layout
from raymlops.profiles.measures import measured
from raymlops.profiles.profile import Profile

if TYPE_CHECKING:
    from collections.abc import Mapping

CHUNK_ROWS = 1 << 16
"""Counted at a time, so that what is between stays in a CPU's cache."""


class Counter:
    """Counts of rows in ``windows`` numbered parts of a table."""

    def __init__(self, layout: Layout, *, windows: int = 1) -> None:
        self.layout = layout
        self.counts = np.zeros((windows, layout.size), np.int64)

    def add(self, columns: Mapping[str, Any], *, rows: int, window: Cells | int = 0) -> None:
        """Count ``rows`` rows, each in the part that ``window`` gives it.

        A column of the layout that is not there is not counted: the sum of its cells is then less than ``rows``.
        """
        for start in range(0, rows, CHUNK_ROWS):
            end = min(rows, start + CHUNK_ROWS)
            part = window[start:end] if isinstance(window, np.ndarray) else np.full(end - start, window)
            first, last = int(part.min()), int(part.max()) + 1
            counts = self.counts[first:last]
            number = np.bincount(part - first, minlength=last - first)
            counts[:, ROWS] += number
            counts[:, READ] += number
            for name, placed in self.layout.by_column.items():
                if name not in columns:
                    continue
                values = columns[name]
                if not hasattr(values, "keys"):
                    values = values[start:end]
                else:
                    values = {measure: each[start:end] for measure, each in values.items()}
                found = measured(values, {series.measure for series, _ in placed})
                for series, cells in placed:
                    if series.measure in found:
                        where = series.cells_of(found[series.measure])
                        counts[:, cells] += _table(where, part - first, size=series.size, windows=last - first)

    def profile(self) -> Profile:
        """Return the profile of all rows."""
        return Profile(self.layout, self.counts.sum(axis=0))


def profile_of(columns: Mapping[str, Any], layout: Layout, *, rows: int | None = None) -> Profile:
    """Return the profile of a table."""
    counter = Counter(layout)
    counter.add(columns, rows=_rows(columns) if rows is None else rows)
    return counter.profile()


def _rows(columns: Mapping[str, Any]) -> int:
    return len(next(iter(columns.values()))) if columns else 0


def _table(where: Cells, window: Cells, *, size: int, windows: int) -> Cells:
    if windows > 1:
        where = np.where(where < 0, -1, where + window * size)
    if len(where) and where.min() < 0:
        where = where[where >= 0]
    return np.bincount(where, minlength=windows * size).reshape(windows, size)
