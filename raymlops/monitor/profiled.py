"""The columns of profiles as the verdict takes them: counts by bin of blocks and of windows of traffic. Pure.

Owns which series are judged, and what is done with values that are not finite, samples, and columns that were not
counted. Of times only whether they are there is judged, since that they move on is no drift, and so it is of means that
rounding alone tells apart, as of shares that add up to 1; registers of distinct texts are not judged.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from raymlops.monitor.drift import OTHER, UNKNOWN, ColumnCounts
from raymlops.monitor.outcome import FEWEST_ROWS
from raymlops.monitor.pairs import PairCounts
from raymlops.profiles.layout import ROWS
from raymlops.profiles.profile import Profile
from raymlops.profiles.scores import sums_of_pair

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from raymlops.monitor.own_windows import OwnWindows
    from raymlops.profiles.layout import Cells, Layout, Series
    from raymlops.profiles.profile import Blocks
    from raymlops.profiles.slices import Slice

ROUNDED = 0.01
"""A share of the rows of a sample that rounding may lose."""
_ROUNDING = 1e-6
"""Of the elements of a tensor in 32 bits: eight times what one of them is off by."""


def column_counts(
    blocks: Blocks,
    windows: Sequence[Profile],
    *,
    influence: Mapping[str, float] | None = None,
    by_chance: Collection[str] = (),
) -> tuple[list[ColumnCounts], dict[str, str]]:
    """Return the columns to judge, and why others cannot be.

    ``windows`` are the window of traffic, after the one before it where there is one. What is not finite counts as
    missing. A window of a sample counts as the rows that say as much, by their weights. ``by_chance`` are those of
    ``chosen_by_chance``.

    Raises:
        ValueError: a window was counted on another layout.
    """
    layout = blocks.layout
    if any(window.layout.digest != layout.digest for window in windows):
        msg = "the window was counted on another layout than the reference"
        raise ValueError(msg)
    weighted = np.stack([window.counts for window in windows])
    traffic = np.stack([read_counts(window) for window in windows])
    whole = blocks.counts.sum(axis=0, keepdims=True)
    found, refused, drawn = [], dict[str, str](), drawn_beyond(blocks, windows)
    usual = Profile(layout, whole[0])
    for at, (series, cells) in enumerate(layout.placed()):
        if series.missing is None:
            continue
        name = shown_name(series)
        if share := max(_absent(weighted, cells), _absent(whole, cells)):
            refused[name] = f"{share:.0%} of the rows lack it: it was redacted for a while, or is of another type"
            continue
        bins, missing = _bins(series, blocks.counts[:, cells])
        window_bins, window_missing = _bins(series, traffic[:, cells])
        shown = bool(len(series.edges))
        if series.measure == "time" or _is_rounding(series, layout):
            bins, window_bins, shown = bins.sum(axis=1, keepdims=True), window_bins.sum(axis=1, keepdims=True), False
        found.append(
            ColumnCounts(
                name,
                bins,
                missing,
                window_bins,
                window_missing,
                ordered=series.is_ordered,
                edges=np.array([-np.inf, *series.shown_edges, np.inf]) if shown else None,
                labels=()
                if series.is_ordered
                else (*series.categories, UNKNOWN if OTHER in series.categories else OTHER),
                influence=None if influence is None else influence.get(series.column),
                without=len(series.categories) if series.column in by_chance else None,
                drawn=drawn,
                alike=tuple(max(0.0, each.design_effect(at) - usual.design_effect(at)) for each in windows),
            )
        )
    return found, refused


def slice_counts(
    chosen: Slice,
    blocks: Blocks,
    windows: Sequence[Profile],
    own: OwnWindows,
    *,
    influence: Mapping[str, float] | None = None,
    by_chance: Collection[str] = (),
) -> tuple[list[ColumnCounts], dict[str, str]]:
    """Return the columns of a slice to judge, called ``COLUMN[SLICE]``, and why others, or the whole slice, cannot be.

    ``blocks`` and ``windows`` are of its rows alone. The column that it is of has one value, in which nothing is seen.
    """
    now, usual = windows[-1].read, float(np.median(own.sums(blocks.rows))) if own.ranges else 0.0
    if now < FEWEST_ROWS or usual < FEWEST_ROWS:
        few = f"{now} rows in this window" if now < FEWEST_ROWS else f"{usual:.0f} rows in the median own window"
        return [], {chosen.name: f"{few}, {FEWEST_ROWS} are needed"}
    columns, refused = column_counts(blocks, windows, influence=influence, by_chance=by_chance)
    found = [replace(column, name=chosen.qualify(column.name), slice=chosen.name) for column in columns]
    return found, {chosen.qualify(name): why for name, why in refused.items()}


def shown_name(series: Series) -> str:
    """Return how a series is called: its column, with the measure where that is not its value."""
    return series.column if series.measure in {"number", "category", "time"} else f"{series.column} ({series.measure})"


def pair_counts(
    blocks: Blocks,
    windows: Sequence[Profile],
    *,
    without: Collection[str] = (),
    only: Collection[str] | None = None,
    influence: Mapping[str, float] | None = None,
) -> list[PairCounts]:
    """Return the pairs of columns to judge: those that have scores, ``without`` some, or ``only`` some.

    Both name columns or pairs; a pair is named with any of its two columns.

    ``windows`` are as for ``column_counts``.
    """
    scores, start = blocks.layout.scores, blocks.layout.sums.start
    traffic, known = np.stack([read_counts(window) for window in windows]), influence or {}
    found, drawn = [], drawn_beyond(blocks, windows)
    for at, one in enumerate(scores):
        for before, other in enumerate(scores[:at]):
            name = f"{other.name} and {one.name}"
            names = {name, one.column, other.column}
            if one.column == other.column or names & {*without} or (only is not None and not names & {*only}):
                continue
            cells = [ROWS, *(start + place for place in sums_of_pair(before, at))]
            both = [known[score.column] for score in (other, one) if score.column in known]
            matters = min(both) if len(both) == 2 else None
            found.append(PairCounts(name, blocks.counts[:, cells], traffic[:, cells], matters, drawn))
    return found


def drawn_beyond(blocks: Blocks, windows: Sequence[Profile]) -> float:
    """Return by how much more the last window varies than own ones, since it is a sample, or a smaller one."""
    return max(0.0, windows[-1].drawn - blocks.drawn)


def read_counts(window: Profile) -> Cells:
    """Return the counts of the rows that say as much as those of a sample, of which each stood for several.

    Those of a series add up to its share of the rows, so that rows in many bins vanish in none: where the sample
    changed within the window, each of some rows stands for less than half a row.
    """
    if window.read == window.rows:
        return window.counts
    counts = window.counts * (window.read / window.rows)
    whole = np.rint(counts).astype(np.int64)
    for _, cells in window.layout.placed():
        whole[cells] = np.diff(np.rint(np.cumsum(counts[cells])).astype(np.int64), prepend=0)
    return np.asarray(whole)


def _absent(counts: Cells, cells: slice) -> float:
    """Return the share of rows without a value of a series, not even a missing one; less than rounding loses is 0."""
    rows = counts[:, ROWS]
    share = float(((rows - counts[:, cells].sum(axis=1)) / np.maximum(rows, 1)).max())
    return share if share > ROUNDED else 0.0


def _is_rounding(series: Series, layout: Layout) -> bool:
    """Return whether the mean or deviation of tensors has no two bins further apart than rounding of 32 bits explains.

    What is the same in nearly all rows has one bin of its own, in which another value is seen.
    """
    if series.measure not in {"mean", "deviation"} or len(series.edges) <= 2:
        return False
    beside = [one.edges for one, _ in layout.by_column[series.column] if one.measure in {"mean", "deviation"}]
    return bool(np.ptp(series.edges) < _ROUNDING * np.abs(np.concatenate(beside)).max())


def _bins(series: Series, counts: Cells) -> tuple[Cells, Cells]:
    bins = counts[:, series.bins]
    return bins, counts.sum(axis=1) - bins.sum(axis=1)
