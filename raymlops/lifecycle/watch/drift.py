"""``drift``: whether a model's newest traffic is unlike what is normal, by the profiles of its hours.

Owns where references and hours come from, and against which reference a window is judged. What is normal, and what is
more than chance, ``monitor`` decides. Changes nothing: the hours are counted when the log is compacted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

import numpy as np

from raymlops.display import table
from raymlops.errors import NotFoundError
from raymlops.lifecycle.watch.windows import Windows
from raymlops.monitor.baseline import Waiting, drift_comparison, first_served
from raymlops.monitor.drift import DriftVerdict, judge
from raymlops.monitor.own_windows import by_rows, by_time
from raymlops.monitor.profiled import column_counts, read_counts
from raymlops.profiles.profile import Blocks
from raymlops.records import Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.lifecycle.sources import Source
    from raymlops.monitor.baseline import Window
    from raymlops.monitor.own_windows import OwnWindows
    from raymlops.predictions.hourly import HourProfile
    from raymlops.profiles.profile import Profile
    from raymlops.profiles.reference import Reference
    from raymlops.state.store import Deployment, State

    Judged = tuple[DriftVerdict, Mapping[str, str]]
    """And the columns that cannot be judged, with the reason."""

Side = Literal["inputs", "outputs"]
SIDES: dict[Side, str] = {"inputs": "features", "outputs": "predictions"}
TRAINING, SERVING = "training", "the first windows served"
_SHOWN = 8


@dataclass(frozen=True)
class WindowDrift(Record):
    """The verdict on one window, or why there is none."""

    side: Side
    kind: Literal["drift", "skew"]
    """``skew`` is of the first windows that the version served, against training."""
    against: str | None
    start: datetime | None
    stop: datetime | None
    rows: int
    verdict: DriftVerdict | None
    waiting: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Columns that cannot be judged, and why."""

    @property
    def outcome(self) -> str:
        """Return ``ok``, ``warn``, ``alarm`` or ``insufficient``; ``waiting`` without a verdict."""
        return "waiting" if self.verdict is None else self.verdict.outcome

    def text(self) -> str:
        """Return a line, and the columns that moved most where they lead to it."""
        title = self.side if self.kind == "drift" else f"{self.side}, skew"
        if self.start is None or self.stop is None:
            return f"{title}: {self.waiting}"
        span = f"{self.start:%Y-%m-%d %H:%M} to {self.stop:%Y-%m-%d %H:%M} UTC, {self.rows:,} rows"
        if self.verdict is None:
            return f"{title}, {span}: {self.waiting}"
        line = f"{title}, {span}, against {self.against}: {self.verdict.outcome}: {self.verdict.reason}"
        line += "".join(f"\n    not judged: {name}: {why}" for name, why in self.refused.items())
        moved = [column for column in self.verdict.columns if column.flagged][:_SHOWN]
        if not moved:
            return line
        rows = [
            {
                "column": column.column,
                "moved": column.moved,
                "sd": f"{column.distance:+.1f}",
                "js": f"{column.jensen_shannon:.3f}",
                "median": " -> ".join(f"{side[2]:.4g}" for side in column.quantiles),
                "missing": " -> ".join(f"{share:.1%}" for share in column.nulls),
                "new": ", ".join(column.new[:3]),
                "vanished": ", ".join(column.vanished[:3]),
            }
            for column in moved
        ]
        shown = [name for name in rows[0] if any(row[name] for row in rows)]
        indented = table(rows, dict.fromkeys(shown)).replace("\n", "\n    ")
        return f"{line}\n    {indented}"


@dataclass(frozen=True)
class DriftRecord(Record):
    """What a model's newest windows of traffic show."""

    name: str
    version: int
    window_h: float
    windows: tuple[WindowDrift, ...]
    notes: tuple[str, ...] = ()

    @property
    def drifted(self) -> bool:
        """Return whether a window is an ``alarm``."""
        return any(window.outcome == "alarm" for window in self.windows)

    def text(self) -> str:
        """Return a line for each window."""
        title = f"{self.name}, version {self.version}, windows of {self.window_h:g} h"
        return "\n".join([title, *(f"  {window.text()}" for window in self.windows), *self.notes])


def drift(name: str, *, since: str | None = None, config: Source | None = None) -> DriftRecord:
    """Return whether the inputs and outputs of a live model drifted, by its newest window of traffic.

    Args:
        name: A model.
        since: As ``7d`` or an ISO time: every window since then is judged, not the newest one alone.
        config: Its configuration, for ``monitor.window_h`` and the state; else both are as the environment says.

    Raises:
        NotFoundError: no such model is live, or its bundle has no profiles.
        UsageError: ``since`` is no time.
        StorageError, UnreachableError: the state or a storage cannot be used.
    """
    from raymlops.lifecycle.named_model import named
    from raymlops.lifecycle.prediction_log import parse_moment
    from raymlops.lifecycle.sources import spec_of, state_of

    spec = named(name) if config is None else spec_of(config)
    now = datetime.now(UTC)
    first = None if since is None else parse_moment(since, now=now)
    with state_of(spec) as state:
        return judged(state, name, now=now, since=first, window=timedelta(hours=spec.monitor.window_h))


def judged(state: State, name: str, *, now: datetime, window: timedelta, since: datetime | None = None) -> DriftRecord:
    """Return the verdicts on the windows that ended by ``now``: the newest one, or all since a time.

    Raises: as ``drift``.
    """
    from raymlops.bundle.profiles import references_of
    from raymlops.lifecycle.live.lineup import champion_of

    champion = champion_of(state.deployments(name))
    if champion is None:
        raise NotFoundError(f"{name} has no live version", hint="raymlops status lists what is live.")
    references = references_of(champion.bundle.uri, champion.bundle.digest)
    hours = _hours(state, champion, references)
    found: list[WindowDrift] = []
    for side, key in SIDES.items():
        if key in references:
            found += _Side(side, references[key], hours, champion.version, window).judge(now, since)
    notes = (
        () if references else (f"version {champion.version} of {name} has profiles of nothing: no table is its data",)
    )
    return DriftRecord(name, champion.version, window.total_seconds() / 3600, tuple(found), notes)


def _hours(state: State, champion: Deployment, references: dict[str, Reference]) -> list[HourProfile]:
    from raymlops.lifecycle.prediction_log import stored_log
    from raymlops.predictions.hourly import hourly_profiles
    from raymlops.storage.store import Store

    log = stored_log(state, champion.name)
    layouts = {key: references[key].layout for key in SIDES.values() if key in references}
    uris = () if log is None else log.uris
    return [hour for uri in uris for hour in hourly_profiles(Store(uri), champion.name, layouts)]


class _Side:
    """Inputs of a model, over its versions, or the outputs of its champion."""

    def __init__(
        self, side: Side, reference: Reference, hours: Sequence[HourProfile], version: int, window: timedelta
    ) -> None:
        key, length_s = SIDES[side], window.total_seconds()
        layout = reference.layout
        self._side = side
        self._reference = reference
        self._version = version
        self._served = Windows(hours, side=key, layout=layout, window_s=length_s, version=version)
        self._windows = (
            self._served if side == "outputs" else Windows(hours, side=key, layout=layout, window_s=length_s)
        )

    def judge(self, now: datetime, since: datetime | None) -> list[WindowDrift]:
        """Return the verdicts on skew, where the first windows have come, and on drift."""
        skew = self._skew(now)
        skewed = skew is not None and skew.outcome == "alarm"
        complete = [one for one in self._windows.complete() if one.stop_s <= now.timestamp()]
        newest = self._windows.newest(until_s=now.timestamp())
        if newest is None:
            drifts = [self._waiting(None, "no window of traffic has ended yet")]
        elif since is not None:
            last = [at for at, one in enumerate(complete) if one.start_s >= since.timestamp()]
            drifts = [self._drift(complete[: at + 1], skewed=skewed) for at in last]
        elif hours := self._windows.uncounted(newest):
            drifts = [self._waiting(newest, _uncounted(hours, self._version))]
        else:
            drifts = [self._drift(complete, skewed=skewed)]
        return [*([] if skew is None else [skew]), *drifts]

    def _skew(self, now: datetime) -> WindowDrift | None:
        ended = [one for one in self._served.complete() if one.stop_s <= now.timestamp()]
        pair = first_served(ended, version=self._version, told=())
        if pair is None:
            return None
        return self._described(pair[1], self._against_training(self._served, pair), TRAINING, kind="skew")

    def _drift(self, windows: Sequence[Window], *, skewed: bool) -> WindowDrift:
        found = drift_comparison(windows, since_s=windows[0].start_s, skewed=skewed)
        if isinstance(found, Waiting):
            return self._waiting(windows[-1], found.reason)
        pair = [one for one in (found.before, found.window) if one is not None]
        if found.baseline:
            served = self._against_serving(pair, found.baseline)
            if served[0].outcome != "insufficient" or skewed:
                return self._described(found.window, served, SERVING)
        return self._described(found.window, self._against_training(self._windows, pair), TRAINING)

    def _against_training(self, windows: Windows, pair: Sequence[Window]) -> Judged | str:
        reference, blocks, last = self._reference, self._reference.blocks, pair[-1]
        if blocks is None:
            return reference.note
        if blocks.times is None or reference.independent:
            own = by_rows(blocks.rows, rows=last.rows)
        else:
            own = by_time(blocks.rows, blocks.times[:-1], blocks.times[1:], window_s=(last.start_s, last.stop_s))
        return _judge(blocks, windows.profiles(pair), own)

    def _against_serving(self, pair: Sequence[Window], baseline: Sequence[Window]) -> Judged:
        starts, stops = (np.array([getattr(one, name) for one in baseline]) for name in ("start_s", "stop_s"))
        blocks = Blocks(
            self._reference.layout, np.stack([read_counts(one) for one in self._windows.profiles(baseline)])
        )
        own = by_time(blocks.rows, starts, stops, window_s=(pair[-1].start_s, pair[-1].stop_s))
        return _judge(blocks, self._windows.profiles(pair), own)

    def _described(
        self, window: Window, judged: Judged | str, against: str, *, kind: Literal["drift", "skew"] = "drift"
    ) -> WindowDrift:
        if isinstance(judged, str):
            return self._waiting(window, judged)
        verdict, refused = judged
        start, stop = _utc(window.start_s), _utc(window.stop_s)
        return WindowDrift(self._side, kind, against, start, stop, window.rows, verdict, refused=refused)

    def _waiting(self, window: Window | None, why: str) -> WindowDrift:
        if window is None:
            return WindowDrift(self._side, "drift", None, None, None, 0, None, why)
        start, stop = _utc(window.start_s), _utc(window.stop_s)
        return WindowDrift(self._side, "drift", None, start, stop, window.rows, None, why)


def _judge(blocks: Blocks, windows: Sequence[Profile], own: OwnWindows) -> Judged:
    columns, refused = column_counts(blocks, windows)
    return judge(columns, own), refused


def _uncounted(hours: int, version: int) -> str:
    return (
        f"{hours} of its hours are not counted on the columns of version {version} yet: the controller counts past "
        "hours, and raymlops predictions NAME --compact does so now"
    )


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
