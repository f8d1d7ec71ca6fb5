"""In which hours a column moved: what it was, hour by hour, in the week until the end of a window.

Owns what of a column is told of an hour, by the contrast that moved: quartiles, the share of a category, what is
missing. One hour differs from the next without any drift: so the days before stand beside the window. Reads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np

from raymlops.lifecycle.watch.window_drift import SIDES
from raymlops.monitor.contrasts import MAX_SHARES, NULLS
from raymlops.monitor.drift import RARER
from raymlops.monitor.effects import quantiles
from raymlops.monitor.profiled import column_counts, shown_name
from raymlops.profiles.layout import HEAD, Cells, Layout
from raymlops.profiles.learn import PRIVATE_ROWS
from raymlops.profiles.profile import Blocks, Profile
from raymlops.records import Record

if TYPE_CHECKING:
    from datetime import datetime

    from raymlops.lifecycle.watch.window_drift import WindowDrift
    from raymlops.monitor.drift import ColumnCounts
    from raymlops.predictions.hourly import HourProfile
    from raymlops.profiles.slices import Slice
    from raymlops.state.watch.windows import Side

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


class Hours:
    """The hours until the end of a window that has a verdict, a week of them, or those of the window."""

    def __init__(
        self, window: WindowDrift, layout: Layout, *, version: int | None, chosen: Slice | None = None
    ) -> None:
        """Take the layout of the window's side, whose hours count, None for those of all versions, and a slice."""
        self._side = window.side
        self._slice = chosen
        self._version = version
        flagged = [] if window.verdict is None else [one for one in window.verdict.columns if one.flagged]
        self._moved = {one.column: one.moved for one in flagged[:MOST_COLUMNS]}
        placed = [found for found in layout.placed() if self._named(shown_name(found[0])) in self._moved]
        self._layout = Layout(tuple(series for series, _ in placed))
        self._cells = np.concatenate([np.arange(HEAD), *(np.arange(at.start, at.stop) for _, at in placed)])
        self._unrelated = np.zeros(self._layout.size - len(self._cells), np.int64)
        self._counts: dict[datetime, Cells] = {}

    def add(self, hour: HourProfile) -> None:
        """Add an hour of one version."""
        profile = hour.profiles.get(self._named(SIDES[self._side]))
        if profile is not None and self._version in {None, hour.version}:
            self._counts[hour.start] = self._counts.get(hour.start, 0) + np.append(
                profile.counts[self._cells], self._unrelated
            )

    def columns(self) -> tuple[HourlyColumn, ...]:
        """Return the first columns that led to the verdict, 8 at most, in its order."""
        profiles = {start: Profile(self._layout, self._counts[start]) for start in sorted(self._counts)}
        profiles = {start: profile for start, profile in profiles.items() if profile.read >= PRIVATE_ROWS}
        if not profiles or not self._layout.series:
            return ()
        counts = np.stack([profile.counts for profile in profiles.values()])
        columns, _ = column_counts(Blocks(self._layout, counts), [Profile(self._layout, counts.sum(axis=0))])
        by_name = {self._named(column.name): column for column in columns}
        rows = tuple(profile.rows for profile in profiles.values())
        return tuple(
            HourlyColumn(self._side, name, what, tuple(profiles), rows, values)
            for name in self._moved
            if name in by_name
            for what, values in [_told(by_name[name], self._moved[name])]
        )

    def _named(self, name: str) -> str:
        return name if self._slice is None else self._slice.qualify(name)


def hours_before(window: WindowDrift) -> tuple[datetime, datetime]:
    """Return from when until when hours are told of a window, which has begun."""
    assert window.start is not None
    assert window.stop is not None
    return min(window.start, window.stop - SPAN), window.stop


def _told(column: ColumnCounts, moved: str) -> tuple[str, tuple[tuple[float, ...], ...]]:
    present = column.blocks.sum(axis=1)
    if moved == NULLS:
        return "missing", _shares(column.nulls, present + column.nulls)
    if not column.ordered:
        labels = [f"share of {label}" for label in column.labels]
        if moved in labels:
            return moved, _shares(column.blocks[:, labels.index(moved)], present)
        whole = column.blocks.sum(axis=0)
        if moved == RARER:
            whole[-1] = 0  # of all that is in no category
        rest = np.argsort(-whole, kind="stable")[MAX_SHARES:]
        return moved, _shares(column.blocks[:, rest].sum(axis=1), present)
    if column.edges is None:
        return "missing", _shares(column.nulls, present + column.nulls)
    return "quartiles", tuple(quantiles(block, column.edges, at=QUARTILES) for block in column.blocks)


def _shares(counts: Cells, rows: Cells) -> tuple[tuple[float, ...], ...]:
    return tuple((round(float(share), 4),) for share in counts / np.maximum(rows, 1))
