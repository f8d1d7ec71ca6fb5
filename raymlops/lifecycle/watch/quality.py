"""What is told of a model's traffic beside its drift: missing values, ranges, categories, volume, silence, repeats.

Owns the facts of a window, and which of them are beyond a configured bound. By default there is no bound: these
numbers have no error rate, so that only people who know what is normal make alarms of them. Requests that were refused
have no row in the log, and are counted by the metric ``raymlops_requests`` alone. Changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from raymlops.lifecycle.watch.windows import place_of
from raymlops.monitor.data_quality import ColumnQuality, Finding, column_quality, named
from raymlops.monitor.own_windows import lag_of
from raymlops.predictions.partition import Faults, read_folder
from raymlops.records import Record
from raymlops.state.drift import judged_windows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from raymlops.config.data import QualitySection
    from raymlops.lifecycle.watch.live_model import LiveModel
    from raymlops.lifecycle.watch.normal import Normal
    from raymlops.lifecycle.watch.traffic import Traffic
    from raymlops.lifecycle.watch.window_drift import WindowDrift
    from raymlops.monitor.data_quality import Shares
    from raymlops.state.store import State

MOST_WINDOWS = 28
"""The newest ones are told of, each by the volumes of as many before it."""
_FOUND = timedelta(days=2)
"""How far back the newest row is looked for."""
_REPEATS_ROWS = 1_000_000
"""Of windows with more rows request ids are not read."""
_ROSE = 0.005
"""A share that rose by less than half a point beyond chance is not shown."""
_KEPT = 20
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
    """The first of those with a share that rose, or is beyond a bound."""
    repeated: float | None = None
    """Share of rows whose request id and number were there before; of the newest window alone, unless it is large."""

    def line(self) -> str:
        """Return the facts as a line."""
        usual = "" if self.usual_rows is None else f" (usually {self.usual_rows:,.0f})"
        parts, risen = [f"{self.rows:,} rows{usual}"], dict[str, list[tuple[str, float]]]()
        for column in self.columns:
            for _, words, share in _shares(column):
                if share.risen > _ROSE:
                    risen.setdefault(words, []).append((column.column, share.after))
        parts += [f"{words}: {named(found)}" for words, found in risen.items()]
        if self.repeated:
            parts.append(f"{self.repeated:.1%} repeat a request id")
        return f"data, {self.start:%Y-%m-%d %H:%M} to {self.stop:%Y-%m-%d %H:%M} UTC: {'; '.join(parts)}"


@dataclass(frozen=True)
class TrafficQuality(Record):
    """The facts of a model's newest windows of inputs."""

    windows: tuple[WindowQuality, ...]
    silent_h: float | None
    """Hours since the end of the last hour that has rows; None where that is longer ago than two days."""
    findings: tuple[Finding, ...] = ()
    """What is beyond a bound of ``monitor.quality``."""

    def lines(self) -> Iterator[str]:
        """Yield a line for each window, then what is beyond a bound."""
        yield from (window.line() for window in self.windows)
        if self.silent_h is None:
            yield f"data: no row in the last {_FOUND.total_seconds() / 3600:.0f} h"
        yield from (f"data, beyond its bound: {finding.message}" for finding in self.findings)


def traffic_quality(
    state: State, model: LiveModel, found: Sequence[WindowDrift], *, now: datetime
) -> TrafficQuality | None:
    """Return the facts of the windows of inputs that verdicts were found on; None where the inputs have no profile.

    Raises:
        StorageError, UnreachableError: the log or the state cannot be read.
    """
    side = next((each for each in model.sides if each.side == "inputs"), None)
    if side is None:
        return None
    starts = sorted({one.start for one in found if one.side == "inputs" and one.kind == "drift" and one.start})
    places = [place_of(start, model.window_s) for start in starts[-MOST_WINDOWS:]]
    volumes = _volumes(state, model, places)
    windows = [_facts(side, at, volumes, model.bounds, newest=at == places[-1]) for at in places]
    told = tuple(one for one in windows if one is not None)
    silent_h = _silent_h(model.traffic, now)
    return TrafficQuality(told, silent_h, tuple(_findings(told, silent_h, model.bounds)))


def _facts(
    side: Normal, at: int, volumes: Mapping[int, int], bounds: QualitySection, *, newest: bool
) -> WindowQuality | None:
    side.traffic.read(at, at)
    window = next(iter(side.windows.within(at, at)), None)
    if window is None or side.windows.uncounted(window):  # some hours are not counted yet, which its verdict says
        return None
    (profile,) = side.windows.profiles([window])
    lag = lag_of(side.window_s)
    before = [rows for place, rows in volumes.items() if place < at and (at - place) % lag == 0][-MOST_WINDOWS:]
    columns = [one for one in column_quality(side.reference.profile, profile) if _is_told(one, bounds)]
    start, stop = (datetime.fromtimestamp(moment, UTC) for moment in (window.start_s, window.stop_s))
    return WindowQuality(
        start,
        stop,
        profile.rows,
        median(before) if before else None,
        tuple(sorted(columns, key=_risen, reverse=True)[:_KEPT]),
        _repeated(side.traffic, start, stop) if newest and window.rows <= _REPEATS_ROWS else None,
    )


def _volumes(state: State, model: LiveModel, places: Sequence[int]) -> dict[int, int]:
    """Return how many rows windows had, by place, in order, as they were judged: no hour is read for that."""
    earliest = min(places, default=0) - MOST_WINDOWS * lag_of(model.window_s)
    since = datetime.fromtimestamp(max(0.0, earliest * model.window_s), UTC)
    length = timedelta(seconds=model.window_s)
    found = {
        place_of(one.start, model.window_s): one.details.get("stand_for", one.rows)
        for one in judged_windows(state, model.name, since=since)
        if one.side == "inputs" and one.kind == "drift" and one.stop - one.start == length
    }
    return dict(sorted(found.items()))


def _shares(column: ColumnQuality) -> list[tuple[str, str, Shares]]:
    """Return what is told of a column: the bound, words, and the share."""
    found = (
        ("max_nulls", "missing", column.nulls),
        ("max_out_of_range", "out of the range of training", column.out_of_range),
        ("max_new_categories", "texts that training has not, or hardly", column.new_categories),
    )
    return [(bound, words, share) for bound, words, share in found if share is not None]


def _risen(column: ColumnQuality) -> float:
    return max(share.risen for _, _, share in _shares(column))


def _is_told(column: ColumnQuality, bounds: QualitySection) -> bool:
    return _risen(column) > _ROSE or any(_is_beyond(bounds, bound, share.after) for bound, _, share in _shares(column))


def _is_beyond(bounds: QualitySection, bound: str, got: float) -> bool:
    allowed = getattr(bounds, bound)
    return allowed is not None and got > allowed


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


def _silent_h(traffic: Traffic, now: datetime) -> float | None:
    ends = [hour.end for _, hour in traffic.hours(now - _FOUND) if hour.start <= now]
    return max(0.0, (now - max(ends)).total_seconds() / 3600) if ends else None


def _findings(windows: Sequence[WindowQuality], silent_h: float | None, bounds: QualitySection) -> Iterator[Finding]:
    most_h = bounds.max_silence_h
    silent = _FOUND.total_seconds() / 3600 if silent_h is None else silent_h
    if most_h is not None and silent > most_h:
        text = f"no row for {silent:.1f} h, more than {most_h:g} (max_silence_h)"
        yield Finding("silence", "now", silent, most_h, text)
    for window in windows:
        where = f"{window.start:%Y-%m-%d %H:%M}"
        if bounds.min_rows is not None and window.rows < bounds.min_rows:
            text = f"{where}: {window.rows:,} rows, fewer than {bounds.min_rows:,} (min_rows)"
            yield Finding("rows", where, window.rows, bounds.min_rows, text)
        repeated = window.repeated or 0.0
        if bounds.max_repeated is not None and repeated > bounds.max_repeated:
            text = f"{where}: {repeated:.2%} of the rows repeat a request id, more than {bounds.max_repeated:.2%}"
            yield Finding("repeated", where, repeated, bounds.max_repeated, f"{text} (max_repeated)")
        for column in window.columns:
            for bound, words, share in _shares(column):
                if _is_beyond(bounds, bound, share.after):
                    allowed = float(getattr(bounds, bound))
                    text = f"{where}: {column.column}, {words}: {share.after:.1%}, more than {allowed:.1%} ({bound})"
                    yield Finding(bound.removeprefix("max_"), where, share.after, allowed, text)
