"""The facts of a window of inputs: missing values, ranges, categories, volume, repeats; and when the last row came.

Owns which of them are told. Changes nothing.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from raymlops.lifecycle.watch.bounds.breach import ROSE, WindowQuality, is_beyond, shares_of
from raymlops.lifecycle.watch.windows import span_of
from raymlops.monitor.data_quality import column_quality
from raymlops.predictions.partition import Faults, has_files, read_folder

if TYPE_CHECKING:
    from datetime import datetime

    from raymlops.config.data import QualitySection
    from raymlops.lifecycle.watch.normal import Normal
    from raymlops.lifecycle.watch.traffic import Traffic
    from raymlops.monitor.baseline import Window
    from raymlops.monitor.data_quality import ColumnQuality

LOOKED_FOR = timedelta(hours=49)
"""How far back the newest row is looked for: an hour longer than any bound of silence."""
_REPEATS_ROWS = 1_000_000
"""Of windows with more rows request ids are not read."""
_KEY = ["request_id", "row", "caller"]


def window_facts(
    side: Normal, window: Window, bounds: QualitySection, *, usual_rows: float | None = None, repeats: bool = False
) -> WindowQuality:
    """Return the facts of a window that has rows, of which every hour is counted; on request with what it repeats.

    Raises:
        StorageError: the log cannot be read.
    """
    (profile,) = side.windows.profiles([window])
    columns = [one for one in column_quality(side.reference.profile, profile) if _is_told(one, bounds)]
    start, stop = span_of(window)
    repeated = _repeated(side.traffic, start, stop) if repeats and window.rows <= _REPEATS_ROWS else None
    return WindowQuality(
        start, stop, profile.rows, usual_rows, tuple(sorted(columns, key=_risen, reverse=True)), repeated
    )


def last_hour_end(traffic: Traffic, now: datetime) -> datetime | None:
    """Return the end of the last hour that has rows; None where that is longer ago than 49 hours.

    Raises:
        StorageError: the log cannot be read.
    """
    hours = [(store, hour) for store, hour in traffic.hours(now - LOOKED_FOR) if hour.start <= now]
    newest_first = sorted(hours, key=lambda found: found[1].end, reverse=True)
    return next((hour.end for store, hour in newest_first if has_files(store, hour.path)), None)


def _risen(column: ColumnQuality) -> float:
    return max(share.risen for _, _, share in shares_of(column))


def _is_told(column: ColumnQuality, bounds: QualitySection) -> bool:
    return _risen(column) > ROSE or any(is_beyond(bounds, bound, share) for bound, _, share in shares_of(column))


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
