"""``drift``: whether a model's newest traffic is unlike what is normal, by the profiles of its hours.

Owns what is answered: the verdicts that the controller has stored, and verdicts found now on windows that it has not
judged. Changes nothing: the hours are counted when the log is compacted, verdicts are stored by the controller.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from raymlops.config.paths import local_path
from raymlops.errors import StorageError, UsageError
from raymlops.lifecycle.watch.hours import Hours, hours_before
from raymlops.lifecycle.watch.live_model import live_model
from raymlops.lifecycle.watch.quality import TrafficQuality, traffic_quality
from raymlops.lifecycle.watch.reporting import page
from raymlops.lifecycle.watch.skew import skew_of
from raymlops.lifecycle.watch.traffic import last_ended
from raymlops.lifecycle.watch.window_drift import WindowDrift, from_stored, refused_in_all, refused_lines
from raymlops.lifecycle.watch.windows import place_from, place_of
from raymlops.records import Record
from raymlops.state.watch.incidents import Incident, incidents_of, unacknowledged
from raymlops.state.watch.windows import about, judged_windows, newest_window
from raymlops.storage import clock

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from raymlops.config.schema import MonitorSection
    from raymlops.lifecycle.sources import Source
    from raymlops.lifecycle.watch.hours import HourlyColumn
    from raymlops.lifecycle.watch.live_model import LiveModel
    from raymlops.lifecycle.watch.normal import Normal
    from raymlops.state.store import State
    from raymlops.state.watch.windows import Side

_SHOWN = 20
_WHERE = "Name with --report, in Python report=, a file in a folder that is there and that this user may write."


@dataclass(frozen=True)
class DriftRecord(Record):
    """What a model's newest windows of traffic show."""

    name: str
    version: int
    window_h: float
    windows: tuple[WindowDrift, ...]
    notes: tuple[str, ...] = ()
    incidents: tuple[Incident, ...] = ()
    """That are open, and with ``since`` those that were then; the newest first."""
    quality: TrafficQuality | None = None
    """What is told of the inputs beside their drift."""

    @property
    def drifted(self) -> bool:
        """Return whether a window of drift is an ``alarm``, or beyond ``monitor.quality``, that nobody acknowledged.

        Skew was there from the beginning.
        """
        alarms = (window for window in self.windows if window.outcome == "alarm" and window.kind == "drift")
        known = {one.column for one in self.incidents if one.closed_at is None and one.acknowledged_at is not None}
        beyond = () if self.quality is None else self.quality.beyond
        return any(one not in known for one in beyond) or any(not one.acknowledged for one in alarms)

    def text(self) -> str:
        """Return a line for each window and for each open incident."""
        title = f"{self.name}, version {self.version}, windows of {self.window_h:g} h"
        never = refused_in_all(self.windows)
        lines = [title, *(f"  {window.text(without=never.get(window.side, ()))}" for window in self.windows)]
        for side, refused in never.items():
            lines += [f"  {line}" for line in refused_lines(refused, f"{side}, in no window judged")]
        lines += [] if self.quality is None else [f"  {line}" for line in self.quality.lines()]
        open_ = [incident for incident in self.incidents if incident.closed_at is None]
        lines += [f"  {incident.text()}" for incident in open_[:_SHOWN]]
        if len(open_) > _SHOWN:
            lines.append(f"  and {len(open_) - _SHOWN} more incidents, which --json lists")
        if open_:
            lines.append(
                f"  if it is normal: raymlops drift {self.name} --acknowledge ID --why TEXT; to mute it: --known"
            )
        return "\n".join([*lines, *self.notes])

    def _repr_html_(self) -> str:
        return page.fragment(_shown(self))


def drift(
    name: str,
    *,
    since: str | None = None,
    between_columns: bool = False,
    report: str | None = None,
    config: Source | None = None,
) -> DriftRecord:
    """Return whether the inputs and outputs of a live model drifted, by its newest window of traffic.

    Args:
        name: A model.
        since: As ``7d`` or an ISO time: every window since then is judged, not the newest one alone.
        between_columns: Judge the correlation of each two inputs too, as where ``monitor.between_columns`` is set.
        report: A file for the report, HTML: the newest 120 windows over time, whatever ``since`` is.
        config: Its configuration, for ``monitor`` and the state; else both are as it was deployed.

    Raises:
        NotFoundError: no such model was ever deployed by the state here, is live, or has profiles in its bundle.
        UsageError: ``since`` is no time, or the report's folder is not there.
        StorageError, UnreachableError: the state or a storage cannot be used, or the report cannot be written.
    """
    from raymlops.lifecycle.named_model import named
    from raymlops.lifecycle.prediction_log import parse_moment
    from raymlops.lifecycle.sources import spec_of, state_of
    from raymlops.storage.filesystem import write_bytes

    spec = named(name, deployed=True) if config is None else spec_of(config)
    now, monitor = clock.now(), spec.monitor
    if between_columns:
        monitor = monitor.model_copy(update={"between_columns": True})
    first = None if since is None else parse_moment(since, now=now)
    local = None if report is None else local_path(report)
    if local is not None and (local.is_dir() or not local.parent.is_dir()):
        why = "is a folder" if local.is_dir() else f"cannot be written: there is no folder {local.parent}"
        raise UsageError(f"the report {str(report)!r} {why}", hint=_WHERE)
    with state_of(spec) as state:
        found = judged(state, name, now=now, since=first, monitor=monitor)
        if report is not None:
            html = reported(state, name, now=now, monitor=monitor).encode()
            try:
                write_bytes(report, html)
            except StorageError as error:
                raise StorageError(error.message, hint=_WHERE) from error
    return found


def reported(
    state: State, name: str, *, now: datetime, monitor: MonitorSection | None = None, only_stored: bool = False
) -> str:
    """Return the report of a model's newest windows, 120 at most; on request those since the first stored verdict.

    Raises: as ``drift``.
    """
    model = live_model(state, name, monitor=monitor)
    since = now - (page.MOST_WINDOWS + 1) * timedelta(seconds=model.window_s)
    if only_stored:
        starts = (one.start for one in judged_windows(state, name, since=since) if one.kind == "drift")
        since = min(starts, default=now)
    record = _judged(state, model, now=now, since=since)
    hours = [column for side in model.sides for column in _by_hour(model, side, record.windows)]
    kept = judged_windows(state, name, since=model.deployed_at, kind="skill")
    skill = [one for one in reversed(kept) if one.version == model.version]
    return page.page(_shown(record, hours)._replace(skill=skill), made_at=now)


def judged(
    state: State, name: str, *, now: datetime, monitor: MonitorSection, since: datetime | None = None
) -> DriftRecord:
    """Return the verdicts on the windows that ended by ``now``: the newest one, or all since a time.

    Raises: as ``drift``.
    """
    return _judged(state, live_model(state, name, monitor=monitor), now=now, since=since)


def _judged(state: State, model: LiveModel, *, now: datetime, since: datetime | None) -> DriftRecord:
    said = incidents_of(state, model.name)
    found = [
        replace(one, acknowledged=_is_acknowledged(one, said, model.version))
        for side in model.sides
        for one in _verdicts(state, model, side, now=now, since=since)
    ]
    notes = []
    if not model.sides:
        notes.append(f"version {model.version} of {model.name} has profiles of nothing: no table is its data")
    if any(side.between and not side.reference.layout.scores for side in model.sides):
        gone = f"version {model.version} of {model.name} keeps nothing of how columns go together"
        notes.append(f"{gone}: register its run again")
    if not model.log.enabled:
        notes.append("nothing is logged (serve.log.enabled is false), so that nothing is judged")
    elif model.short is not None:
        notes.append(model.short)
    if ahead := model.traffic.ahead(now):
        notes.append(f"{ahead} hours of rows are from later than now: the clock of a node is wrong; they wait for then")
    incidents = tuple(one for one in said if one.closed_at is None or (since is not None and one.closed_at >= since))
    quality = traffic_quality(state, model, found, now=now)
    window_h = model.window_s / 3600
    return DriftRecord(model.name, model.version, window_h, tuple(found), tuple(notes), incidents, quality)


def _is_acknowledged(found: WindowDrift, said: Sequence[Incident], champion: int) -> bool:
    if found.verdict is None or found.start is None or found.outcome != "alarm":
        return False
    cause = (found.side, found.kind, champion if found.kind == "skew" else about(found.side, champion))
    ours = [one for one in said if (one.side, one.kind, one.version) == cause]
    return not unacknowledged(found.verdict.flagged, ours, start=found.start)


def _shown(record: DriftRecord, hours: Sequence[HourlyColumn] = ()) -> page.Shown:
    quality = () if record.quality is None else tuple(record.quality.lines())
    return page.Shown(
        record.name, record.version, record.window_h, record.windows, hours, record.incidents, quality, record.notes
    )


def _by_hour(model: LiveModel, side: Normal, windows: Sequence[WindowDrift]) -> tuple[HourlyColumn, ...]:
    """Return by the hour what moved in the newest window of a side in which anything did."""
    ours = [one for one in windows if (one.side, one.kind) == (side.side, "drift")]
    moved = next((one for one in reversed(ours) if one.verdict is not None and one.verdict.flagged), None)
    if moved is None:
        return ()
    version = model.version if side.side == "outputs" else None
    hours = [
        Hours(moved, side.reference.layout, version=version, chosen=chosen) for chosen in (None, *side.reference.slices)
    ]
    model.traffic.add(*hours_before(moved), into=hours)
    return tuple(column for each in hours for column in each.columns())


def _verdicts(
    state: State, model: LiveModel, side: Normal, *, now: datetime, since: datetime | None
) -> Iterator[WindowDrift]:
    """Yield the verdicts on one side: as they were stored, else as they are found now."""
    last = last_ended(now, model.window_s)
    skew, skewed, _ = skew_of(state, model.name, side, last)
    if skew is not None:
        yield skew
    if since is not None:
        yield from _since(state, model, side, since, last, skewed=skewed)
        return
    newest = partial(newest_window, state, model.name, side=side.side, version=about(side.side, model.version))
    before = newest(length_s=model.window_s) if model.as_deployed else None
    at = side.newest(last, after=None if before is None else place_of(before.start, model.window_s))
    found = [] if at is None else list(side.drifts(at, at, skewed=skewed))
    if before is not None and all(side.uncounted(one) for one in found):
        yield from_stored(before)
    elif not found:
        yield _none(side.side, _no_window(model, last, side.most))
    yield from found


def _since(
    state: State,
    model: LiveModel,
    side: Normal,
    since: datetime,
    last: int,
    *,
    skewed: Collection[str],
) -> Iterator[WindowDrift]:
    version, first = about(side.side, model.version), model.traffic.first_hour()
    stored = {
        place_of(one.start, model.window_s): one
        for one in (judged_windows(state, model.name, since=since) if model.as_deployed else ())
        if (one.side, one.kind, one.version) == (side.side, "drift", version)
        and (one.stop - one.start).total_seconds() == model.window_s
    }
    begin = min([place_of(first, model.window_s) if first is not None else last + 1, *stored])
    begin = max(begin, place_from(since, model.window_s))
    model.traffic.read(begin, last, without=stored)
    none = True
    for at in range(begin, last + 1):
        found = [from_stored(stored[at])] if at in stored else side.drifts(at, at, skewed=skewed)
        for one in found:
            none = False
            yield one
    if none:
        yield _none(side.side, f"no window has begun and ended since {since:%Y-%m-%d %H:%M} UTC")


def _no_window(model: LiveModel, last: int, looked_at: int) -> str:
    first = model.traffic.first_hour()
    if first is None or place_of(first, model.window_s) > last:
        return f"no window of traffic has ended yet{_when(model, first)}"
    return f"none of the newest {looked_at} windows has traffic"


def _when(model: LiveModel, first: datetime | None) -> str:
    """Return when the first window ends that is judged, after the one in which traffic began."""
    if first is None:
        return ""
    at = place_from(first, model.window_s) + 1
    return f"; the first that is judged ends at {datetime.fromtimestamp(at * model.window_s, UTC):%Y-%m-%d %H:%M} UTC"


def _none(side: Side, why: str) -> WindowDrift:
    return WindowDrift(side, "drift", None, None, None, 0, None, why)
