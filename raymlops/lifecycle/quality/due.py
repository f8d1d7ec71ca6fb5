"""Which windows of a live version are due to be judged by their labels, in order.

Owns how long a window waits for its labels: until ``monitor.skill.labels_within_h`` after its end, or else half as long
again as 9 of 10 of its labels took, each counted by the age that its request could have had. Windows after it wait with
it. One without any label waits until a later one has its own. A window is judged once: labels that come later change no
verdict, so that all windows are judged by labels of about the same age, and ``coverage`` says how many these are.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from raymlops.lifecycle.quality.window import judged
from raymlops.lifecycle.watch.traffic import last_ended
from raymlops.lifecycle.watch.windows import place_from, place_of, span_of
from raymlops.monitor.baseline import Window
from raymlops.predictions.compact import GRACE
from raymlops.state.watch.windows import newest_window, windows_of_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from raymlops.lifecycle.quality.measure import Measured
    from raymlops.lifecycle.quality.model import QualityModel
    from raymlops.predictions.labelled import Labels
    from raymlops.state.store import State
    from raymlops.state.watch.windows import JudgedWindow

    Found = tuple[JudgedWindow, tuple[str, ...]]
    """What is kept, and what of it is an alarm."""

LOOK_BACK = timedelta(days=90)
"""Windows that ended before are not judged any more."""
PATIENCE = 1.5
"""By which the time that 9 of 10 labels took is multiplied: of labels that come at a constant rate 94% are there."""
LONGEST = timedelta(days=60)
"""How long a window waits for labels, without ``monitor.skill.labels_within_h``."""
MAX_LABEL_BYTES = 32 * 2**20
"""Of labels held at a time, about half a million."""
_REMOVED_SOON = timedelta(days=2)
_SHORTEST, _PART = timedelta(hours=1), 8


class Look(NamedTuple):
    """What a window showed, and when it is looked at again; None where it is due."""

    again: datetime | None
    found: Measured


Seen = dict[tuple[str, int, datetime, datetime], Look]
"""By model, version, and begin and end of the window."""


class Span(NamedTuple):
    """A window of time."""

    start: datetime
    stop: datetime


def history_of(state: State, model: QualityModel) -> list[JudgedWindow]:
    """Return the verdicts on a champion's windows since it took the route, oldest first.

    Raises:
        StorageError, UnreachableError: the state cannot be read.
    """
    return windows_of_version(state, model.name, model.version, kind="skill", since=model.since)


def due(
    state: State,
    model: QualityModel,
    *,
    now: datetime,
    seen: Seen | None = None,
    hurry: Callable[[], bool] = lambda: False,
) -> Iterator[Found]:
    """Yield the verdicts that are due, in order, until ``hurry`` says that the time is up.

    ``seen`` spares looking again at windows that wait.

    Raises:
        StorageError, UnreachableError: the log or the state cannot be read.
        RaymlopsError: the recipe's ``loss_of`` cannot be asked.
    """
    seen = {} if seen is None else seen
    history = history_of(state, model)
    labels: Labels | None = None
    passed: list[tuple[Span, Measured]] = []
    for span in pending(state, model, now=now):
        key = (model.name, model.version, span.start, span.stop)
        look = seen.get(key)
        if look is None or look.again is None or now >= look.again:
            if _is_early(model, span, now=now) or hurry():
                return
            labels = labels or labels_since(model, span.start)
            if labels is None:  # none came since it began
                return
            found = model.measure(labels, start=span.start, stop=span.stop, now=now)
            if found is None:  # nobody asked
                continue
            look = Look(_again(model, span, found, now=now), found)
        if look.again is not None:
            seen[key] = look
            if look.found.coverage.labelled:
                return  # its labels still come
            passed.append((span, look.found))
            continue
        for one, measured in (*passed, (span, look.found)):
            kept = judged(
                measured,
                history,
                model.section,
                name=model.name,
                version=model.version,
                start=one.start,
                stop=one.stop,
                now=now,
                known=model.known,
            )
            history.append(kept[0])
            seen.pop((model.name, model.version, one.start, one.stop), None)
            yield kept
        passed = []


def pending(state: State, model: QualityModel, *, now: datetime) -> Iterator[Span]:
    """Yield the windows that ended and were not judged, as they were kept.

    Raises:
        StorageError, UnreachableError: the state cannot be read.
    """
    window_s = model.window_s
    before = newest_window(state, model.name, side="outputs", version=model.version, kind="skill")
    first = max(model.since, now - LOOK_BACK, *(() if model.kept_since is None else (model.kept_since,)))
    at = place_of(first, window_s)
    at = at if before is None else max(at, place_from(before.stop, window_s))
    for place in range(at, last_ended(now - GRACE, window_s) + 1):
        start, stop = span_of(Window(place * window_s, (place + 1) * window_s, 0, 0))
        yield Span(start, stop)


def _is_early(model: QualityModel, span: Span, *, now: datetime) -> bool:
    within = model.section.labels_within_h
    return within is not None and now < span.stop + timedelta(hours=within)


def labels_since(model: QualityModel, since: datetime) -> Labels | None:
    """Return the labels that came since then; None without any.

    Raises:
        StorageError: they cannot be read.
    """
    from raymlops.predictions.labelled import load_labels
    from raymlops.predictions.partition import Faults
    from raymlops.predictions.paths import label_days
    from raymlops.storage.store import Store

    store = Store(model.root)
    if not label_days(store, model.name, since=since):
        return None
    return load_labels(store, model.name, Faults(), since=since, max_bytes=MAX_LABEL_BYTES)


def _again(model: QualityModel, span: Span, found: Measured, *, now: datetime) -> datetime | None:
    """Return when a window is looked at again; None where it is due."""
    age = now - span.stop
    removed = model.kept_since is not None and span.start <= model.kept_since + _REMOVED_SOON
    if model.section.labels_within_h is not None or removed or age >= LONGEST:
        return None
    lag_s = found.coverage.lags_s[-1]
    if math.isnan(lag_s):
        return now + max(_SHORTEST, age / _PART)
    ready = span.stop + PATIENCE * timedelta(seconds=lag_s)
    return None if now >= ready else max(ready, now + _SHORTEST)
