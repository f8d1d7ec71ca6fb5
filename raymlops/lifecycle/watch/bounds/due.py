"""What is due to be compared with the bounds of ``monitor.quality``: windows of inputs as they end, and silence.

Owns which windows these are, and when silence begins and ends. Nothing is kept of a model without bounds, but for what
ends its open incidents.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from raymlops.display import some_of
from raymlops.lifecycle.live.lineup import champion_of
from raymlops.lifecycle.watch.bounds.breach import WindowQuality, bounds_windows, breaches, silence
from raymlops.lifecycle.watch.bounds.facts import LOOKED_FOR, last_hour_end, window_facts
from raymlops.lifecycle.watch.traffic import last_ended
from raymlops.lifecycle.watch.window_drift import KEPT_COLUMNS
from raymlops.lifecycle.watch.windows import place_from, place_of
from raymlops.monitor.baseline import Window
from raymlops.predictions.compact import GRACE
from raymlops.state.drift import ANY_VERSION, JudgedWindow, incidents_of, newest_window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import timedelta

    from raymlops.lifecycle.watch.bounds.breach import Breach
    from raymlops.lifecycle.watch.live_model import LiveModel
    from raymlops.lifecycle.watch.normal import Normal
    from raymlops.state.drift import Kind
    from raymlops.state.store import State

    Found = tuple[JudgedWindow, tuple[str, ...]]
    """What is kept, and all that is beyond a bound."""

_WITHIN = "within the bounds of monitor.quality"


def bounds_due(
    state: State, model: LiveModel, *, now: datetime, look_back: timedelta, wait: timedelta
) -> Iterator[Found]:
    """Yield what is due, in order: windows that ended in ``look_back``, then silence where it begins or ends.

    A window waits for hours that are not counted as long as ``wait``, and the windows after it with it.

    Raises:
        StorageError, UnreachableError: the log or the state cannot be read.
    """
    side = next((each for each in model.sides if each.side == "inputs"), None)
    if side is None:
        return
    open_ = {one.kind for one in incidents_of(state, model.name, open_only=True)}
    if bounds_windows(model.bounds) or "quality" in open_:
        yield from _windows(state, model, side, now=now, look_back=look_back, wait=wait)
    if model.bounds.max_silence_h is not None or "silence" in open_:
        yield from _silence(state, model, now=now, is_open="silence" in open_)


def _windows(
    state: State, model: LiveModel, side: Normal, *, now: datetime, look_back: timedelta, wait: timedelta
) -> Iterator[Found]:
    bounds, window_s, first_hour = model.bounds, model.window_s, model.traffic.first_hour()
    before = newest_window(state, model.name, side="inputs", version=ANY_VERSION, kind="quality")
    last = last_ended(now - GRACE, window_s)
    # Of windows that ended before there was any bound, the newest one alone is judged.
    first = last if before is None else max(place_of(now - look_back, window_s), place_from(before.stop, window_s))
    for at in range(first, last + 1):
        side.traffic.read(at, at)
        seen = next(iter(side.windows.within(at, at)), None)
        window = seen or Window(at * window_s, (at + 1) * window_s, 0, 0)
        if first_hour is None or window.start_s < first_hour.timestamp() or not (seen or bounds.min_rows):
            continue
        start, stop = (datetime.fromtimestamp(moment, UTC) for moment in (window.start_s, window.stop_s))
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
            found = tuple(breaches(facts, bounds))
            kept = _kept(model, "quality", start, stop, now=now, rows=facts.rows, found=found)
            yield kept, tuple(one.subject for one in found)


def _silence(state: State, model: LiveModel, *, now: datetime, is_open: bool) -> Iterator[Found]:
    """Yield what begins or ends silence. It is none of the time before the champion was there."""
    champion = champion_of(state.deployments(model.name))
    if champion is None:
        return
    since = max(last_hour_end(model.traffic, now) or now - LOOKED_FOR, champion.created_at)
    found = silence((now - since).total_seconds() / 3600, model.bounds)
    if (found is not None) == is_open:
        return
    before = newest_window(state, model.name, side="inputs", version=ANY_VERSION, kind="silence")
    if before is not None:  # an hour ends later than its first row, which ended silence
        since = before.stop if found is None else max(since, before.stop)
    breach = () if found is None else (found,)
    yield _kept(model, "silence", since, now, now=now, found=breach), tuple(one.subject for one in breach)


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
        waiting or (f"beyond its bounds: {some_of(subjects)}" if found else _WITHIN),
        rows,
        now,
        details={"beyond": [one.to_dict() for one in found[:KEPT_COLUMNS]]},
    )
