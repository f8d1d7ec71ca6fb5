"""The facts of a window of inputs: missing values, ranges, categories, volume, repeats; and when the last row came.

Owns which of them are told. Changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from raymlops.monitor.data_quality import ColumnQuality, column_quality, named
from raymlops.predictions.partition import Faults, read_folder
from raymlops.records import Record

if TYPE_CHECKING:
    from raymlops.config.data import QualitySection
    from raymlops.lifecycle.watch.normal import Normal
    from raymlops.lifecycle.watch.traffic import Traffic
    from raymlops.monitor.baseline import Window
    from raymlops.monitor.data_quality import Shares

LOOKED_FOR = timedelta(days=2)
"""How far back the newest row is looked for."""
_REPEATS_ROWS = 1_000_000
"""Of windows with more rows request ids are not read."""
_ROSE = 0.005
"""A share that rose by less than half a point beyond chance is not shown."""
_KEY = ["request_id", "row", "caller"]


@dataclass(frozen=True)
class WindowQuality(Record):
    """The facts of one window of inputs."""

    start: datetime
    stop: datetime
    rows: int
    """That were served: those of a sampled log count by their weight."""
    usual_rows: float | None
    """The median of windows before it, at the same time of day; None where none is known."""
    columns: tuple[ColumnQuality, ...]
    """Those with a share that rose, or is beyond a bound, what rose most first."""
    repeated: float | None = None
    """Share of rows whose request id and number were there before; of the newest window alone, unless it is large."""

    def line(self) -> str:
        """Return the facts as a line."""
        usual = "" if self.usual_rows is None else f" (usually {self.usual_rows:,.0f})"
        parts, risen = [f"{self.rows:,} rows{usual}"], dict[str, list[tuple[str, float]]]()
        for column in self.columns:
            for _, words, share in shares_of(column):
                if share.risen > _ROSE:
                    risen.setdefault(words, []).append((column.column, share.after))
        parts += [f"{words}: {named(found)}" for words, found in risen.items()]
        if self.repeated:
            parts.append(f"{self.repeated:.1%} repeat a request id")
        return f"data, {self.start:%Y-%m-%d %H:%M} to {self.stop:%Y-%m-%d %H:%M} UTC: {'; '.join(parts)}"


def window_facts(
    side: Normal, window: Window, bounds: QualitySection, *, usual_rows: float | None = None, repeats: bool = False
) -> WindowQuality:
    """Return the facts of a window that has rows, of which every hour is counted; on request with what it repeats.

    Raises:
        StorageError: the log cannot be read.
    """
    (profile,) = side.windows.profiles([window])
    columns = [one for one in column_quality(side.reference.profile, profile) if _is_told(one, bounds)]
    start, stop = (datetime.fromtimestamp(moment, UTC) for moment in (window.start_s, window.stop_s))
    repeated = _repeated(side.traffic, start, stop) if repeats and window.rows <= _REPEATS_ROWS else None
    return WindowQuality(
        start, stop, profile.rows, usual_rows, tuple(sorted(columns, key=_risen, reverse=True)), repeated
    )


def last_row(traffic: Traffic, now: datetime) -> datetime | None:
    """Return the end of the last hour that has rows; None where that is longer ago than two days.

    Raises:
        StorageError: the log cannot be read.
    """
    return max((hour.end for _, hour in traffic.hours(now - LOOKED_FOR) if hour.start <= now), default=None)


def shares_of(column: ColumnQuality) -> list[tuple[str, str, Shares]]:
    """Return what is told of a column: the bound, words, and the share."""
    found = (
        ("max_nulls", "missing", column.nulls),
        ("max_out_of_range", "out of the range of training", column.out_of_range),
        ("max_new_categories", "texts that training has not, or hardly", column.new_categories),
    )
    return [(bound, words, share) for bound, words, share in found if share is not None]


def is_beyond(bounds: QualitySection, bound: str, got: float) -> bool:
    """Return whether a share is beyond its bound."""
    allowed = getattr(bounds, bound)
    return allowed is not None and got > allowed


def _risen(column: ColumnQuality) -> float:
    return max(share.risen for _, _, share in shares_of(column))


def _is_told(column: ColumnQuality, bounds: QualitySection) -> bool:
    return _risen(column) > _ROSE or any(is_beyond(bounds, bound, share.after) for bound, _, share in shares_of(column))


def _repeated(traffic: Traffic, start: datetime, stop: datetime) -> float:
    """Return the share of answered rows whose request id, number and caller were there before."""
    parts = []
    for store, hour in traffic.hours(start, stop):
        for batch in read_folder(store, hour.path, Faults(), columns=[*_KEY, "route"]):
            table = pa.table(batch)
            parts.append(table.filter(pc.fill_null(pc.not_equal(table["route"], "shadow"), True)).select(_KEY))
    rows = pa.concat_tables(parts) if parts else None
    if rows is None or not rows.num_rows:
        return 0.0
    return 1 - float(rows.group_by(_KEY).aggregate([]).num_rows) / float(rows.num_rows)
