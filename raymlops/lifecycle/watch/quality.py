"""What is told of a model's traffic beside its drift: missing values, ranges, categories, volume, silence, repeats.

Owns which windows are told of, their usual volume, and how the answer is put together; the facts of one window and what
is beyond a bound are in ``bounds``. By default there is no bound: these numbers have no error rate, so that only people
who know what is normal make alarms of them. Requests that were refused have no row in the log, and are
counted by the metric ``raymlops_requests`` alone. Changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING

from raymlops.lifecycle.watch.bounds.breach import WindowQuality, breaches
from raymlops.lifecycle.watch.bounds.due import silent
from raymlops.lifecycle.watch.bounds.facts import LOOKED_FOR, last_hour_end, window_facts
from raymlops.lifecycle.watch.window_drift import KEPT_COLUMNS
from raymlops.lifecycle.watch.windows import place_of
from raymlops.monitor.own_windows import lag_of
from raymlops.records import Record
from raymlops.state.watch.incidents import incidents_of
from raymlops.state.watch.windows import judged_windows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from raymlops.config.data import QualitySection
    from raymlops.lifecycle.watch.live_model import LiveModel
    from raymlops.lifecycle.watch.normal import Normal
    from raymlops.lifecycle.watch.window_drift import WindowDrift
    from raymlops.monitor.data_quality import Finding
    from raymlops.state.store import State

MOST_WINDOWS = 28
"""The newest ones are told of, each by the volumes of as many before it."""


@dataclass(frozen=True)
class TrafficQuality(Record):
    """The facts of a model's newest windows of inputs."""

    windows: tuple[WindowQuality, ...]
    silent_h: float | None
    """Hours since the end of the last hour that has rows; None where that is longer ago than 49 hours."""
    findings: tuple[Finding, ...] = ()
    """What is beyond a bound of ``monitor.quality``."""
    beyond: tuple[str, ...] = ()
    """What incidents of these are of, as ``carrier (max_nulls)``."""

    def lines(self) -> Iterator[str]:
        """Yield a line for each window, then what is beyond a bound."""
        yield from (window.line() for window in self.windows)
        if self.silent_h is None:
            yield f"data: no row in the last {LOOKED_FOR.total_seconds() / 3600:.0f} h"
        yield from (f"data, beyond its bound: {finding.message}" for finding in self.findings)


def traffic_quality(
    state: State, model: LiveModel, found: Sequence[WindowDrift], *, now: datetime
) -> TrafficQuality | None:
    """Return the facts of the windows of inputs that verdicts were found on; None where the inputs have no profile.

    Raises:
        StorageError, UnreachableError: the log or the state cannot be read.
    """
    side = model.inputs
    if side is None:
        return None
    starts = sorted({one.start for one in found if one.side == "inputs" and one.kind == "drift" and one.start})
    days = model.log.retention_days
    if days is not None:  # of an older window some hours may be removed: what is left of it says nothing of it
        starts = [start for start in starts if now - start <= timedelta(days=days)]
    places = [place_of(start, model.window_s) for start in starts[-MOST_WINDOWS:]]
    volumes = _volumes(state, model, places)
    windows = [_facts(side, at, volumes, model.bounds, newest=at == places[-1]) for at in places]
    told = [one for one in windows if one is not None]
    newest = last_hour_end(model.traffic, now)
    silent_h = None if newest is None else max(0.0, (now - newest).total_seconds() / 3600)
    is_open = any(one.kind == "silence" for one in incidents_of(state, model.name, open_only=True))
    _, silence = silent(model, now=now, is_open=is_open)
    found_beyond = [] if silence is None else [("now", silence)]
    for window, whole in told:
        beyond = islice(breaches(window, model.bounds), KEPT_COLUMNS if whole else 0)
        found_beyond += [(f"{window.start:%Y-%m-%d %H:%M}", each) for each in beyond]
    findings = tuple(each.finding(where) for where, each in found_beyond)
    shown = tuple(replace(window, columns=window.columns[:KEPT_COLUMNS]) for window, _ in told)
    return TrafficQuality(shown, silent_h, findings, tuple(each.subject for _, each in found_beyond))


def _facts(
    side: Normal, at: int, volumes: Mapping[int, int], bounds: QualitySection, *, newest: bool
) -> tuple[WindowQuality, bool] | None:
    """Return the facts of a window, and whether it is one to judge; None where some hours are not counted."""
    side.traffic.read(at, at)
    window = next(iter(side.windows.within(at, at)), None)
    if window is None or side.windows.uncounted(window):  # some hours are not counted yet, which its verdict says
        return None
    lag = lag_of(side.window_s)
    before = [rows for place, rows in volumes.items() if place < at and (at - place) % lag == 0][-MOST_WINDOWS:]
    found = window_facts(side, window, bounds, usual_rows=median(before) if before else None, repeats=newest)
    return found, not side.windows.interrupted(window)


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
