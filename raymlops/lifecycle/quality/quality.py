"""``quality``: how good a live model's answers are by their labels, since its promotion.

Owns what is answered: the verdicts that the controller has kept, and verdicts found now on windows that it has not
judged. Changes nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raymlops.config.paths import local_path
from raymlops.errors import UsageError
from raymlops.lifecycle.quality.beside import Beside, beside
from raymlops.lifecycle.quality.due import due, history_of, labels_since, pending
from raymlops.lifecycle.quality.estimate import Estimated, estimated
from raymlops.lifecycle.quality.model import quality_model
from raymlops.lifecycle.quality.window import verdict_of
from raymlops.records import Record
from raymlops.state.watch.incidents import Incident, incidents_of
from raymlops.storage import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from raymlops.config.data import SkillSection
    from raymlops.lifecycle.quality.due import Span
    from raymlops.lifecycle.quality.model import QualityModel
    from raymlops.lifecycle.sources import Source
    from raymlops.monitor.skill.verdict import Verdict
    from raymlops.state.store import State
    from raymlops.state.watch.windows import JudgedWindow

ANSWER_S = 30.0
"""How long windows are looked at that the controller has not judged."""


@dataclass(frozen=True)
class QualityRecord(Record):
    """What the labels of a model's answers show."""

    name: str
    version: int
    since: datetime
    """When the version took the route."""
    metric: str
    window_h: float
    verdict: Verdict | None
    """On all windows since then; None before the first one was judged."""
    windows: tuple[JudgedWindow, ...]
    """The oldest first."""
    waiting: int = 0
    """Windows that ended and wait for their labels."""
    estimated: Estimated | None = None
    beside: tuple[Beside, ...] = ()
    """Shadows on the same labelled requests."""
    incidents: tuple[Incident, ...] = ()
    """Open ones, of these answers."""

    @property
    def worse(self) -> bool:
        """Return whether the newest verdict is an alarm that nobody acknowledged."""
        newest = self.windows[-1] if self.windows else None
        known = any(one.acknowledged_at is not None for one in self.incidents)
        return newest is not None and newest.outcome == "alarm" and not known

    def text(self) -> str:
        """Return a line for the verdict, for each window, and for what waits."""
        since = f"{self.name}, version {self.version} since {self.since:%Y-%m-%d %H:%M} UTC"
        lines = [f"{since}, {self.metric} in windows of {self.window_h:g} h, against its test rows"]
        verdict = self.verdict
        if verdict is not None:
            lines.append(f"  {verdict.outcome}: {verdict.reason}")
        for window in self.windows:
            lines += [f"  {line}" for line in window_lines(window)]
        if self.waiting:
            s = "s" if self.waiting > 1 else ""
            lines.append(f"  {self.waiting} window{s} that ended wait{'' if s else 's'} for labels")
        elif self.verdict is None:
            lines.append("  no window in which it answered has ended yet since it took the route")
        if self.estimated is not None:
            lines.append(f"  {self.estimated.text()}")
        lines += [f"  {each.text()}" for each in self.beside]
        lines += [f"  {incident.text()}" for incident in self.incidents]
        return "\n".join(lines)


def quality(
    name: str, *, since: str | None = None, report: str | None = None, config: Source | None = None
) -> QualityRecord:
    """Return how good the answers of a live model are by their labels, by its newest window and all before it.

    Args:
        name: A model.
        since: As ``7d`` or an ISO time: every window since then is shown, not the newest one alone.
        report: A file for the report of drift and quality, HTML.
        config: Its configuration, for ``monitor.skill`` and the state; else both are as it was deployed.

    Raises:
        NotFoundError: no such model is live, its answers have no loss, or its bundle keeps no test rows.
        UsageError: ``since`` is no time, there is no such metric, or the report's folder is not there.
        StorageError, UnreachableError: the state or a storage cannot be used, or the report cannot be written.
    """
    from raymlops.lifecycle.named_model import named
    from raymlops.lifecycle.prediction_log import parse_moment
    from raymlops.lifecycle.sources import spec_of, state_of
    from raymlops.lifecycle.watch.drift import reported
    from raymlops.storage.filesystem import write_bytes

    spec = named(name, deployed=True) if config is None else spec_of(config)
    now = clock.now()
    first = None if since is None else parse_moment(since, now=now)
    local = None if report is None else local_path(report)
    if local is not None and (local.is_dir() or not local.parent.is_dir()):
        raise UsageError(f"the report {str(report)!r} cannot be written", hint="Name a file in a folder that is there.")
    with state_of(spec) as state:
        found = judged_quality(state, name, now=now, since=first, section=spec.monitor.skill)
        if report is not None:
            write_bytes(report, reported(state, name, now=now, monitor=spec.monitor).encode())
    return found


def judged_quality(
    state: State, name: str, *, now: datetime, since: datetime | None = None, section: SkillSection | None = None
) -> QualityRecord:
    """Return the verdicts on the windows of a model's champion: the newest one, or all since a time.

    Raises: as ``quality``.
    """
    model = quality_model(state, name, now=now, section=section)
    kept = history_of(state, model)
    ended = list(pending(state, model, now=now))
    ends = time.monotonic() + ANSWER_S

    def hurry() -> bool:
        return time.monotonic() >= ends

    newer = due(state, model, now=now, hurry=hurry)
    found = [*kept, *(window for window, _ in newer)]
    later = _asked(model, [one for one in ended if not found or one.start >= found[-1].stop])
    shown = [one for one in found if one.start >= since] if since is not None else found[-1:]
    open_ = (one for one in incidents_of(state, name, open_only=True) if one.kind == "skill")
    return QualityRecord(
        name,
        model.version,
        model.since,
        model.section.metric,
        model.section.window_h,
        verdict_of(found[-1]) if found else None,
        tuple(shown),
        len(later),
        estimated(model, later[-1]) if later else None,
        tuple(_beside(state, model, now=now, hurry=hurry)),
        tuple(open_),
    )


def _asked(model: QualityModel, spans: Sequence[Span]) -> list[Span]:
    """Return the windows in which the version answered anybody, by a listing of its hours."""
    from raymlops.predictions.paths import prediction_hours
    from raymlops.storage.store import Store

    if not spans:
        return []
    found = prediction_hours(Store(model.root), model.name, since=spans[0].start, version=model.version)
    return [span for span in spans if any(span.start <= hour.start < span.stop for hour in found)]


def _beside(state: State, model: QualityModel, *, now: datetime, hurry: Callable[[], bool]) -> Iterator[Beside]:
    shadows = [item for item in state.deployments(model.name) if item.shadow > 0]
    if not shadows:
        return
    labels = labels_since(model, max(model.since, min(one.created_at for one in shadows)))
    if labels is None:
        return
    for shadow in shadows:
        found = beside(model, shadow, labels, now=now, hurry=hurry)
        if found is not None:
            yield found


def window_lines(window: JudgedWindow) -> Iterator[str]:
    """Yield what is said of a window: its verdict, its labels, and slices that lost more than chance explains."""
    details = window.details
    span = f"{window.start:%Y-%m-%d %H:%M} to {window.stop:%Y-%m-%d %H:%M} UTC"
    coverage = details["coverage"]
    half = coverage["half_lag_s"]
    lag = "" if half is None else f", half within {half / 3600:.3g} h"
    labels = f"{window.rows:,} labelled of {details['answered']:,} rows ({coverage['labelled']:.0%}{lag})"
    if details.get("skill") is None:
        yield f"{span}, {labels}: {window.outcome}: {window.reason}"
    else:
        lost = details["expected_skill"] - details["skill"]
        told = f"skill {details['skill']:.3f}, lost {lost:+.3f} ({details['low']:+.3f} to {details['high']:+.3f})"
        loss = "" if details["metric"] == "auc" else f"{details['metric']} {details['window']['loss']:.3g}, "
        yield f"{span}, {labels}: {window.outcome}: {loss}{told}"
        if window.outcome != "ok":
            yield f"  {window.reason}"
    for one in details["slices"]:
        if one["flagged"]:
            yield f"  {one['name']}: skill {one['skill']:.3f}, {one['expected']:.3f} expected (p {one['p']:.2g})"
    for note in details["notes"]:
        yield f"  {note}"
