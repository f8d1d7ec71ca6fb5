"""In which hours a column moved: what it was, hour by hour, in the week until the end of a window.

Owns what of a column is told of an hour, by the contrast that moved: quartiles, the share of a category, what is
missing. One hour differs from the next without any drift: so the days before stand beside the window.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np

from raymlops.lifecycle.watch.window_drift import SIDES
from raymlops.monitor.contrasts import MAX_SHARES, NULLS
from raymlops.monitor.effects import quantiles
from raymlops.monitor.profiled import column_counts, shown_name
from raymlops.profiles.layout import HEAD, Cells, Layout
from raymlops.profiles.learn import PRIVATE_ROWS
from raymlops.profiles.profile import Blocks, Profile
from raymlops.records import Record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from raymlops.lifecycle.watch.window_drift import Side, WindowDrift
    from raymlops.monitor.drift import ColumnCounts

MOST_COLUMNS = 8
"""Of a window."""
SPAN = timedelta(days=7)
QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class HourlyColumn(Record):
    """A column in the hours that have at least 20 rows."""

    side: Side
    column: str
    what: str
    """``quartiles``, ``missing``, or ``share of LABEL``."""
    starts: tuple[datetime, ...]
    rows: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]
    """Of each hour the three quartiles, or one share."""


def hourly_columns(
    window: WindowDrift, uris: Sequence[str], *, name: str, layout: Layout, version: int | None
) -> tuple[HourlyColumn, ...]:
    """Return the flagged columns of a window by the hour, 8 at most.

    Args:
        window: With a verdict.
        uris: Where the model's log is.
        name: The model.
        layout: Of the window's side.
        version: Whose hours; None for those of all versions.

    Raises:
        StorageError: the storage cannot be used.
    """
    from raymlops.predictions.hourly import hourly_profiles
    from raymlops.storage.store import Store

    moved = {} if window.verdict is None else {one.column: one.moved for one in window.verdict.columns if one.flagged}
    moved = dict(list(moved.items())[:MOST_COLUMNS])
    key, placed = SIDES[window.side], [found for found in layout.placed() if shown_name(found[0]) in moved]
    if not placed or window.start is None or window.stop is None:
        return ()
    few = Layout(tuple(series for series, _ in placed))
    cells = np.concatenate([np.arange(HEAD), *(np.arange(where.start, where.stop) for _, where in placed)])
    hours: dict[datetime, Cells] = {}
    since = min(window.start, window.stop - SPAN)
    for uri in uris:
        some = hourly_profiles(Store(uri), name, {key: layout}, since=since, until=window.stop, version=version)
        for hour in some:
            if (profile := hour.profiles.get(key)) is not None:
                hours[hour.start] = hours.get(hour.start, 0) + profile.counts[cells]
    starts = sorted(start for start, counts in hours.items() if Profile(few, counts).read >= PRIVATE_ROWS)
    if not starts:
        return ()
    counts = np.stack([hours[start] for start in starts])
    columns, _ = column_counts(Blocks(few, counts), [Profile(few, counts.sum(axis=0))])
    rows = tuple(Profile(few, one).rows for one in counts)
    found = {}
    for column in columns:
        what, values = _told(column, moved[column.name])
        found[column.name] = HourlyColumn(window.side, column.name, what, tuple(starts), rows, values)
    return tuple(found[column] for column in moved if column in found)


def _told(column: ColumnCounts, moved: str) -> tuple[str, tuple[tuple[float, ...], ...]]:
    present = column.blocks.sum(axis=1)
    if moved == NULLS:
        return "missing", _shares(column.nulls, present + column.nulls)
    if not column.ordered:
        labels = [f"share of {label}" for label in column.labels]
        if moved in labels:
            return moved, _shares(column.blocks[:, labels.index(moved)], present)
        rest = np.argsort(-column.blocks.sum(axis=0), kind="stable")[MAX_SHARES:]
        return moved, _shares(column.blocks[:, rest].sum(axis=1), present)
    if column.edges is None:
        return "missing", _shares(column.nulls, present + column.nulls)
    return "quartiles", tuple(quantiles(block, column.edges, at=QUARTILES) for block in column.blocks)


def _shares(counts: Cells, rows: Cells) -> tuple[tuple[float, ...], ...]:
    return tuple((round(float(share), 4),) for share in counts / np.maximum(rows, 1))
