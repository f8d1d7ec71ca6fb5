"""What is due to be compared with the bounds of ``monitor.quality``: windows of inputs as they end, and silence.

Owns which windows these are, and when silence begins and ends. Nothing is kept of a model without bounds, but for what
ends its open incidents.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from raymlops.display import some_of
from raymlops.lifecycle.watch.bounds.breach import WindowQuality, bounds_windows, breaches, silence, window_bounds
from raymlops.lifecycle.watch.bounds.facts import LOOKED_FOR, last_hour_end, window_facts
from raymlops.lifecycle.watch.traffic import last_ended
from raymlops.lifecycle.watch.window_drift import KEPT_COLUMNS
from raymlops.lifecycle.watch.windows import place_from, place_of, span_of
from raymlops.monitor.baseline import Window
from raymlops.predictions.compact import GRACE
from raymlops.state.audit import changes_of
from raymlops.state.store import Deployment
from raymlops.state.watch.incidents import incidents_of
from raymlops.state.watch.windows import ANY_VERSION, JudgedWindow, newest_window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from raymlops.lifecycle.watch.bounds.breach import Breach
    from raymlops.lifecycle.watch.live_model import LiveModel
    from raymlops.lifecycle.watch.normal import Normal
    from raymlops.state.store import State
    from raymlops.state.watch.windows import Kind

    Found = tuple[JudgedWindow, tuple[str, ...]]
    """What is kept, and all that is beyond a bound."""


def bounds_due(
    state: State, model: LiveModel, *, now: datetime, look_back: timedelta, wait: timedelta
) -> Iterator[Found]:
    """Yield what is due, in order: windows that ended in ``look_back``, then silence where it begins or ends.

    A window waits for hours that are not counted as long as ``wait``, and the windows after it with it.

    Raises:
        StorageError, UnreachableError: the log or the state cannot be read.
    """
    side = model.inputs
    if side is None:
        return
    open_ = incidents_of(state, model.name, open_only=True)
    known = [one.column for one in open_ if one.kind == "quality"]
    if bounds_windows(model.bounds) or known:
        yield from _windows(state, model, side, now=now, look_back=look_back, wait=wait, known=known)
    if model.bounds.max_silence_h is not None or any(one.kind == "silence" for one in open_):
        yield from _silence(state, model, now=now)


def silent(model: LiveModel, *, now: datetime, is_open: bool) -> tuple[datetime, Breach | None]:
    """Return since when no row came, and whether that is beyond its bound.

    Time before the champion was deployed does not count, unless an incident is open: deploying another version does not
    end it.

    Raises:
        StorageError: the log cannot be read.
    """
    since = last_hour_end(model.traffic, now) or now - LOOKED_FOR
    since = since if is_open else max(since, model.deployed_at)
    if not model.log.enabled:  # of what is not logged nobody knows
        return since, None
    return since, silence((now - since).total_seconds() / 3600, model.bounds)


def _windows(
    state: State,
    model: LiveModel,
    side: Normal,
    *,
    now: datetime,
    look_back: timedelta,
    wait: timedelta,
    known: Sequence[str],
) -> Iterator[Found]:
    """Yield the verdicts on windows; what is ``known`` of an incident is named after what is new."""
    bounds, window_s, first_hour = model.bounds, model.window_s, model.traffic.first_hour()
    before = newest_window(state, model.name, side="inputs", version=ANY_VERSION, kind="quality")
    last, earliest = last_ended(now - GRACE, window_s), now - look_back
    first = place_of(max(earliest, _bounded_since(state, model, earliest)), window_s)
    first = first if before is None else max(first, place_from(before.stop, window_s))
    for at in range(first, last + 1):
        side.traffic.read(at, at)
        seen = next(iter(side.windows.within(at, at)), None)
        window = seen or Window(at * window_s, (at + 1) * window_s, 0, 0)
        counts = seen or (bounds.min_rows and model.log.enabled)
        if first_hour is None or window.start_s < first_hour.timestamp() or not counts:
            continue
        start, stop = span_of(window)
        if seen is not None and (hours := side.windows.uncounted(window)):
            if now < stop + wait:
                return
            yield _kept(model, "quality", start, stop, now=now, waiting=f"{hours} of its hours are not counted"), ()
        elif side.windows.interrupted(window):
            yield _kept(model, "quality", start, stop, now=now, waiting="no version was live for a part of it"), ()
        else:
            repeats = bounds.max_repeated is not None
            facts = WindowQuality(start, stop, 0, None, ())
            facts = facts if seen is None else window_facts(side, seen, bounds, repeats=repeats)
            found = tuple(sorted(breaches(facts, bounds), key=lambda one: one.subject in known))
            kept = _kept(model, "quality", start, stop, now=now, rows=facts.rows, found=found)
            yield kept, tuple(one.subject for one in found)


def _bounded_since(state: State, model: LiveModel, earliest: datetime) -> datetime:
    """Return since when windows have the bounds that are in force; ``earliest`` where that is longer ago."""
    ours = window_bounds(model.bounds.model_dump())
    since = earliest
    for event in changes_of(state, model.name):  # newest first
        after = next((item for item in event.after if item["role"] == "champion"), None)
        if after is None or window_bounds(after.get("monitor", {}).get("quality") or {}) != ours:
            return since
        if event.ts < earliest:
            return earliest
        came_up = all(item["version"] != after["version"] for item in event.before)
        since = Deployment.from_dict(after).created_at if came_up else event.ts
    return since


def _silence(state: State, model: LiveModel, *, now: datetime) -> Iterator[Found]:
    """Yield what begins or ends silence."""
    # Read before the incident: what another judge records between the two is not recorded again.
    before = newest_window(state, model.name, side="inputs", version=ANY_VERSION, kind="silence")
    open_ = incidents_of(state, model.name, open_only=True)
    incident = next((one for one in open_ if one.kind == "silence"), None)
    since, found = silent(model, now=now, is_open=incident is not None)
    if (found is not None) == (incident is not None):
        return
    came = incident is not None and since > max(incident.opened_at, now - LOOKED_FOR)
    within = "rows came" if came else "monitor.quality allows it" if model.log.enabled else "nothing is logged"
    if before is not None:  # an hour ends later than its first row, which ended silence
        since = before.stop if found is None else max(since, before.stop)
    # Each lasts until after the one before it, also where a clock was ahead.
    until = max(now, since + timedelta(microseconds=1))
    breach = () if found is None else (found,)
    kept = _kept(model, "silence", since, until, now=now, found=breach, within=within)
    yield kept, tuple(one.subject for one in breach)


def _kept(
    model: LiveModel,
    kind: Kind,
    start: datetime,
    stop: datetime,
    *,
    now: datetime,
    rows: int = 0,
    found: Sequence[Breach] = (),
    waiting: str = "",
    within: str = "within the bounds of monitor.quality",
) -> JudgedWindow:
    subjects = [one.subject for one in found]
    return JudgedWindow(
        model.name,
        "inputs",
        kind,
        ANY_VERSION,
        start,
        stop,
        model.version,
        "waiting" if waiting else "alarm" if found else "ok",
        waiting or (f"beyond its bounds: {some_of(subjects)}" if found else within),
        rows,
        now,
        details={"beyond": [one.to_dict() for one in found[:KEPT_COLUMNS]]},
    )
