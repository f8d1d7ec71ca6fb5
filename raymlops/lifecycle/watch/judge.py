"""Judge each window of every live model once, whoever dies, and file what follows.

Owns which windows are due, and how long one waits for hours that nobody counted. What is normal is ``normal``'s, what
becomes of an incident ``incidents``'. A window, its incidents and their audit events are written together: a judge that
is killed leaves all of them or none, and the next one, or another at the same time, finds what is there. Messages are
written once the look at all models is over, so that one tells of all that share a fault.
"""

from __future__ import annotations

import time
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from raymlops.lifecycle.live.each_model import EachModel
from raymlops.lifecycle.live.lineup import champion_of
from raymlops.lifecycle.watch.bounds.due import bounds_due
from raymlops.lifecycle.watch.incidents import file_verdict, retire
from raymlops.lifecycle.watch.live_model import live_model
from raymlops.lifecycle.watch.messaging.tell import tell_incidents
from raymlops.lifecycle.watch.skew import skew_of
from raymlops.lifecycle.watch.traffic import last_ended
from raymlops.lifecycle.watch.window_drift import to_stored
from raymlops.lifecycle.watch.windows import place_from, place_of
from raymlops.monitor.outcome import FEWEST_ROWS
from raymlops.predictions.compact import GRACE
from raymlops.state.engine import this_user
from raymlops.state.watch.incidents import change_incident, incidents_of, record_window
from raymlops.state.watch.windows import ANY_VERSION, about, newest_window, remove_windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime

    from raymlops.lifecycle.watch.live_model import LiveModel
    from raymlops.lifecycle.watch.normal import Normal
    from raymlops.lifecycle.watch.window_drift import WindowDrift
    from raymlops.state.store import State
    from raymlops.state.watch.windows import JudgedWindow

    Due = tuple[JudgedWindow, tuple[str, ...], Mapping[str, bool] | None]
    """What is kept, all columns that led to it, and whether each that was judged was as usual, as ``file_verdict``."""

LOOK_BACK = timedelta(days=7)
"""Windows that ended before are judged when somebody asks, by ``raymlops drift --since``; two windows are looked at."""
SHORTEST_WAIT, LONGEST_WAIT = timedelta(hours=6), timedelta(days=2)
"""How long a window waits for hours that are not counted, and the windows after it with it: its own length, between
these. The hours of the last two days are counted each hour."""
KEPT = timedelta(days=730)
"""How long verdicts are kept, but for those that others depend on."""


class Judge:
    """Judge what is due of every model. Called once an hour, in a thread that may take minutes."""

    def __init__(self, state: State, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._state = state
        self._actor = f"controller of {this_user()}"
        self._each = EachModel(state, undone="its traffic was not judged", actor=self._actor, clock=clock)

    def __call__(self, now: datetime) -> None:
        """Judge what is due; record what fails for a model, and continue with the others."""
        remove_windows(self._state, before=now - KEPT, rows=FEWEST_ROWS)
        names = {item.name for item in self._state.deployments()}
        names |= {one.name for one in incidents_of(self._state, open_only=True)}
        # A bundle of an earlier release has nothing to judge by.
        self._each(names, lambda name, hurry: judge_due(self._state, name, now=now, actor=self._actor, hurry=hurry))
        tell_incidents(self._state, now=now)


def judge_due(
    state: State,
    name: str,
    *,
    now: datetime,
    actor: str | None = None,
    hurry: Callable[[], bool] = lambda: False,
) -> bool:
    """Judge the windows of a model that ended and were not judged; return whether none is left.

    After each window ``hurry`` says whether the time is up.

    Raises:
        NotFoundError: its bundle has no profiles.
        BundleError, StorageError, UnreachableError: of the bundle, a storage or the state.
    """
    champion = champion_of(state.deployments(name))
    _retire(state, name, None if champion is None else champion.version, now=now, actor=actor)
    if champion is None:
        return True
    model = live_model(state, name)
    _retire_columns(state, model, now=now, actor=actor)
    for window, columns, calm in _all_due(state, model, now=now):
        file = partial(file_verdict, window, columns, calm=calm)
        record_window(state, window, file, normal=model.baselines, actor=actor)
        if hurry():
            return False
    return True


def _all_due(state: State, model: LiveModel, *, now: datetime) -> Iterator[Due]:
    for side in model.sides:
        for found in _due(state, model, side, now=now):
            flagged = () if found.verdict is None else found.verdict.flagged
            yield to_stored(found, name=model.name, version=model.version, now=now), flagged, found.calm
    for window, columns in bounds_due(state, model, now=now, look_back=LOOK_BACK, wait=_wait(model.window_s)):
        yield window, columns, None


def _due(state: State, model: LiveModel, side: Normal, *, now: datetime) -> Iterator[WindowDrift]:
    """Yield the verdicts that are due on one side, in order."""
    last = last_ended(now - GRACE, model.window_s)
    skew, skewed, kept = skew_of(state, model.name, side, last)
    if skew is not None and not kept:
        yield skew
    before = newest_window(state, model.name, side=side.side, version=about(side.side, model.version))
    first = max(place_of(now - LOOK_BACK, model.window_s), 0)
    first = min(first, last - 1) if before is None else max(first, place_from(before.stop, model.window_s))
    for found in side.drifts(first, last, skewed=skewed):
        if side.uncounted(found) and found.stop is not None and now < found.stop + _wait(model.window_s):
            return
        yield found


def _wait(window_s: float) -> timedelta:
    return min(max(timedelta(seconds=window_s), SHORTEST_WAIT), LONGEST_WAIT)


def _retire(state: State, name: str, champion: int | None, *, now: datetime, actor: str | None) -> None:
    """Close the incidents of what is live no more: of another version, or of a model that was taken down."""
    for incident in incidents_of(state, name, open_only=True):
        if champion is None or incident.version not in {ANY_VERSION, champion}:
            why = f"{name} was taken down" if champion is None else f"version {champion} is live now"
            change_incident(state, incident.id, partial(retire, now=now, why=why), name=name, actor=actor)


def _retire_columns(state: State, model: LiveModel, *, now: datetime, actor: str | None) -> None:
    """Close the incidents of columns that the champion does not have, or is not watched for: none is judged again."""
    columns = {side.side: side.columns.every for side in model.sides}
    for one in incidents_of(state, model.name, open_only=True):
        if one.kind == "drift" and one.column not in columns.get(one.side, {one.column}):
            why = f"version {model.version} is not judged by {one.column}"
            change_incident(state, one.id, partial(retire, now=now, why=why), name=model.name, actor=actor)
