"""``drift``: whether a model's newest traffic is unlike what is normal, by the profiles of its hours.

Owns where references and hours come from, and against which reference a window is judged. What is normal, and what is
more than chance, ``monitor`` decides. Changes nothing: the hours are counted when the log is compacted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from raymlops.errors import NotFoundError
from raymlops.lifecycle.watch.hours import hourly_columns
from raymlops.lifecycle.watch.reporting import page
from raymlops.lifecycle.watch.window_drift import SIDES, WindowDrift
from raymlops.lifecycle.watch.windows import Windows
from raymlops.monitor.baseline import first_served, running, serving_baseline
from raymlops.monitor.drift import FEWEST_ROWS, DriftVerdict, judge
from raymlops.monitor.outcome import FEWEST_OWN
from raymlops.monitor.own_windows import by_rows, by_time
from raymlops.monitor.profiled import column_counts, read_counts
from raymlops.profiles.profile import Blocks
from raymlops.records import Record
from raymlops.state.drift import incidents_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.lifecycle.sources import Source
    from raymlops.lifecycle.watch.hours import HourlyColumn
    from raymlops.lifecycle.watch.window_drift import Kind, Side
    from raymlops.monitor.baseline import Window
    from raymlops.monitor.own_windows import OwnWindows
    from raymlops.predictions.hourly import HourProfile
    from raymlops.profiles.profile import Profile
    from raymlops.profiles.reference import Reference
    from raymlops.state.drift import Incident
    from raymlops.state.store import State

    Judged = tuple[DriftVerdict, Mapping[str, str]]
    """And the columns that cannot be judged, with the reason."""

TRAINING, SERVING = "training", "the first windows served"
MOST_INCIDENTS = 20


@dataclass(frozen=True)
class DriftRecord(Record):
    """What a model's newest windows of traffic show."""

    name: str
    version: int
    window_h: float
    windows: tuple[WindowDrift, ...]
    notes: tuple[str, ...] = ()
    hours: tuple[HourlyColumn, ...] = ()
    """The columns that moved in the newest window of each side in which any did, by the hour."""
    incidents: tuple[Incident, ...] = ()
    """The newest ones."""

    @property
    def drifted(self) -> bool:
        """Return whether a window of drift is an ``alarm``; skew was there from the beginning."""
        return any(window.outcome == "alarm" and window.kind == "drift" for window in self.windows)

    def text(self) -> str:
        """Return a line for each window."""
        title = f"{self.name}, version {self.version}, windows of {self.window_h:g} h"
        return "\n".join([title, *(f"  {window.text()}" for window in self.windows), *self.notes])

    def report(self, made_at: datetime) -> str:
        """Return the report of these windows as one self-contained HTML file."""
        return page.page(self._shown(), made_at=made_at)

    def _repr_html_(self) -> str:
        return page.fragment(self._shown())

    def _shown(self) -> page.Shown:
        return page.Shown(self.name, self.version, self.window_h, self.windows, self.hours, self.incidents, self.notes)


def drift(
    name: str, *, since: str | None = None, report: str | None = None, config: Source | None = None
) -> DriftRecord:
    """Return whether the inputs and outputs of a live model drifted, by its newest window of traffic.

    Args:
        name: A model.
        since: As ``7d`` or an ISO time: every window since then is judged, not the newest one alone.
        report: A file for the report, HTML: the newest 120 windows over time, whatever ``since`` is.
        config: Its configuration, for ``monitor.window_h`` and the state; else both are as the environment says.

    Raises:
        NotFoundError: no such model is live, or its bundle has no profiles.
        UsageError: ``since`` is no time.
        StorageError, UnreachableError: the state or a storage cannot be used, or the report cannot be written.
    """
    from raymlops.lifecycle.named_model import named
    from raymlops.lifecycle.prediction_log import parse_moment
    from raymlops.lifecycle.sources import spec_of, state_of
    from raymlops.storage.filesystem import write_bytes

    spec = named(name) if config is None else spec_of(config)
    now, window = datetime.now(UTC), timedelta(hours=spec.monitor.window_h)
    first = None if since is None else parse_moment(since, now=now)
    with state_of(spec) as state:
        if report is None:
            return judged(state, name, now=now, since=first, window=window)
        whole = now - (page.MOST_WINDOWS + 1) * window
        record = judged(state, name, now=now, since=whole if first is None else min(first, whole), window=window)
    write_bytes(report, record.report(now).encode())
    return replace(record, windows=tuple(_newest(record.windows, first)))


def judged(state: State, name: str, *, now: datetime, window: timedelta, since: datetime | None = None) -> DriftRecord:
    """Return the verdicts on the windows that ended by ``now``: the newest one, or all since a time.

    Raises: as ``drift``.
    """
    from raymlops.bundle.profiles import references_of
    from raymlops.lifecycle.live.lineup import champion_of
    from raymlops.lifecycle.prediction_log import stored_log
    from raymlops.predictions.hourly import hourly_profiles
    from raymlops.storage.store import Store

    champion = champion_of(state.deployments(name))
    if champion is None:
        raise NotFoundError(f"{name} has no live version", hint="raymlops status lists what is live.")
    references = references_of(champion.bundle.uri, champion.bundle.digest)
    sides = [_Side(side, references[key], champion.version, window) for side, key in SIDES.items() if key in references]
    log = stored_log(state, name)
    layouts = {key: references[key].layout for key in SIDES.values() if key in references}
    for uri in () if log is None or not sides else log.uris:
        for hour in hourly_profiles(Store(uri), name, layouts):
            for each in sides:
                each.add(hour)
    found = [verdict for each in sides for verdict in each.judge(now, since)]
    hours = [column for each in sides for column in each.hours(found, () if log is None else log.uris, name)]
    notes = (
        () if references else (f"version {champion.version} of {name} has profiles of nothing: no table is its data",)
    )
    length_h = window.total_seconds() / 3600
    incidents = tuple(incidents_of(state, name)[:MOST_INCIDENTS])
    return DriftRecord(name, champion.version, length_h, tuple(found), notes, tuple(hours), incidents)


def _newest(windows: Sequence[WindowDrift], since: datetime | None) -> list[WindowDrift]:
    """Return the windows since a time, or else the last one of each side; skew is of no time."""
    last = {(one.side, one.kind): one for one in windows}
    return [
        one
        for one in windows
        if one.kind == "skew"
        or (one is last[one.side, one.kind] if since is None else one.start is None or one.start >= since)
    ]


class _Side:
    """Inputs of a model, over its versions, or the outputs of its champion."""

    def __init__(self, side: Side, reference: Reference, version: int, window: timedelta) -> None:
        self._side = side
        self._reference = reference
        self._version = version
        key, length_s = SIDES[side], window.total_seconds()
        self._served = Windows(side=key, layout=reference.layout, window_s=length_s)
        self._windows = (
            self._served if side == "outputs" else Windows(side=key, layout=reference.layout, window_s=length_s)
        )

    def add(self, hour: HourProfile) -> None:
        """Add an hour of any version."""
        if hour.version == self._version:
            self._served.add(hour)
        if self._windows is not self._served:
            self._windows.add(hour)

    def judge(self, now: datetime, since: datetime | None) -> list[WindowDrift]:
        """Return the verdicts on skew, where the first windows have come, and on drift."""
        skew = self._skew(now)
        skewed = skew is not None and skew.outcome == "alarm"
        ended = self._windows.ended(now.timestamp())
        wanted = ended[-1:] if since is None else [one for one in ended if one.start_s >= since.timestamp()]
        none = "no window of traffic has ended yet" if not ended else f"no window has begun and ended since {since}"
        drifts = [self._drift(one, skewed=skewed) for one in wanted] or [self._waiting(None, none)]
        return [*([] if skew is None else [skew]), *drifts]

    def hours(self, windows: Sequence[WindowDrift], uris: Sequence[str], name: str) -> tuple[HourlyColumn, ...]:
        """Return by the hour what moved in the newest window of this side in which anything did."""
        ours = [one for one in windows if (one.side, one.kind) == (self._side, "drift")]
        moved = next((one for one in reversed(ours) if one.verdict is not None and one.verdict.flagged), None)
        version = self._version if self._side == "outputs" else None
        layout = self._reference.layout
        return () if moved is None else hourly_columns(moved, uris, name=name, layout=layout, version=version)

    def _skew(self, now: datetime) -> WindowDrift | None:
        pair = first_served(self._served.counted(now.timestamp()))
        if pair is None:
            return None
        return self._described(pair[1], self._against_training(self._served, pair), TRAINING, kind="skew")

    def _drift(self, window: Window, *, skewed: bool) -> WindowDrift:
        if hours := self._windows.uncounted(window):
            return self._waiting(window, _uncounted(hours, self._version))
        if window.rows < FEWEST_ROWS:
            return self._waiting(window, f"fewer than {FEWEST_ROWS} rows")
        counted = self._windows.counted(window.stop_s)
        pair = running(counted)
        training = None if skewed else self._against_training(self._windows, pair)
        if training is not None and not isinstance(training, str) and training[0].outcome != "insufficient":
            return self._described(window, training, TRAINING)
        baseline = serving_baseline(counted)
        if len(baseline) >= FEWEST_OWN:
            return self._described(window, self._against_serving(pair, baseline), SERVING)
        have = f"the serving baseline has {len(baseline)} of {FEWEST_OWN} windows"
        if training is None:
            return self._waiting(window, f"training differs from what is served, and {have}")
        if isinstance(training, str):
            return self._waiting(window, f"{training}; {have}")
        return self._described(window, training, TRAINING)

    def _against_training(self, windows: Windows, pair: Sequence[Window]) -> Judged | str:
        reference, blocks, last = self._reference, self._reference.blocks, pair[-1]
        if blocks is None:
            return reference.note
        if blocks.times is None or reference.independent:
            own = by_rows(blocks.rows, rows=last.rows)
        else:
            own = by_time(blocks.rows, blocks.times[:-1], blocks.times[1:], window_s=(last.start_s, last.stop_s))
        return _judge(blocks, windows.profiles(pair), own, reference.influence)

    def _against_serving(self, pair: Sequence[Window], baseline: Sequence[Window]) -> Judged | str:
        starts = np.array([one.start_s for one in baseline])
        stops = np.array([one.stop_s for one in baseline])
        counts = np.stack([read_counts(one) for one in self._windows.profiles(baseline)])
        blocks = Blocks(self._reference.layout, counts)
        own = by_time(blocks.rows, starts, stops, window_s=(pair[-1].start_s, pair[-1].stop_s))
        return _judge(blocks, self._windows.profiles(pair), own, self._reference.influence)

    def _described(self, window: Window, judged: Judged | str, against: str, *, kind: Kind = "drift") -> WindowDrift:
        if isinstance(judged, str):
            return self._waiting(window, judged, kind=kind)
        verdict, refused = judged
        return WindowDrift(self._side, kind, against, *_span(window), window.rows, verdict, refused=refused)

    def _waiting(self, window: Window | None, why: str, *, kind: Kind = "drift") -> WindowDrift:
        if window is None:
            return WindowDrift(self._side, kind, None, None, None, 0, None, why)
        return WindowDrift(self._side, kind, None, *_span(window), window.rows, None, why)


def _judge(blocks: Blocks, windows: Sequence[Profile], own: OwnWindows, influence: Mapping[str, float]) -> Judged | str:
    columns, refused = column_counts(blocks, windows, influence=influence)
    if not columns:
        return "no column can be judged" + "".join(f"; {name}: {why}" for name, why in refused.items())
    return judge(columns, own), refused


def _uncounted(hours: int, version: int) -> str:
    return (
        f"{hours} of its hours are not counted on the columns of version {version}: the controller counts those of the "
        "last two days, and raymlops predictions NAME --compact counts them all now"
    )


def _span(window: Window) -> tuple[datetime, datetime]:
    return datetime.fromtimestamp(window.start_s, UTC), datetime.fromtimestamp(window.stop_s, UTC)
