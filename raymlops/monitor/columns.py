"""The columns of profiles as the verdict on drift reads them. Pure.

Owns which cells of a layout are bins, and which are missing values. Infinities are missing: no layout has them between
two edges. Times are left out, since that they move on is no drift, and so are the registers of distinct values, which
are not numbers of rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from raymlops.monitor.drift import ColumnCounts

if TYPE_CHECKING:
    from raymlops.profiles.layout import Cells, Layout, Series

_LEFT_OUT = frozenset({"time", "distinct"})
_PRIMARY = frozenset({"number", "category"})


def columns_of(layout: Layout, *, blocks: Cells, windows: Cells) -> list[ColumnCounts]:
    """Return each measure of a column with its counts in the blocks of a reference and in one or two windows.

    ``blocks`` and ``windows`` are counts on the layout, of shape (blocks, layout.size) and (1 or 2, layout.size).
    """
    found = []
    for series, cells in layout.placed():
        if series.measure in _LEFT_OUT:
            continue
        there, absent = _split(series)
        of_blocks, of_windows = blocks[:, cells], windows[:, cells]
        edges = series.edges if series.is_ordered and len(series.edges) else None
        found.append(
            ColumnCounts(
                name=series.column if series.measure in _PRIMARY else f"{series.column} ({series.measure})",
                blocks=of_blocks[:, there],
                nulls=of_blocks[:, absent].sum(axis=1),
                windows=of_windows[:, there],
                window_nulls=of_windows[:, absent].sum(axis=1),
                ordered=series.is_ordered,
                # The tails end at the outermost edges, beyond which nothing is known.
                edges=None if edges is None else np.concatenate([edges[:1], edges, edges[-1:]]),
                labels=() if series.is_ordered else (*series.categories, "all other values"),
            )
        )
    return found


def _split(series: Series) -> tuple[slice, list[int]]:
    """Return the cells of values that are there, and those of all others."""
    bins = range(*series.bins.indices(series.size))
    return series.bins, [cell for cell in range(series.size) if cell not in bins]
