"""Which windows of traffic are compared with what: skew is not drift. Pure.

**Skew**: a version's training against the first windows that it served. What differs there differs for good: a feature
is computed otherwise, or other callers ask. **Drift**: later windows against training, or where it was skewed against a
serving baseline, the first windows that were served. A baseline ends four weeks after it began: it never takes in what
drifted since.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raymlops.monitor.outcome import FEWEST_ROWS, fewest_own
from raymlops.monitor.own_windows import DAY_S, FEWEST_IN_PHASE, WEEK_S, lag_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BASELINE_WINDOWS, BASELINE_S = 28, 28 * DAY_S
"""Of a serving baseline at most, whichever is longer: windows below a week take three weeks, to have each hour of
it three times. With more a slow drift would be compared with itself."""


@dataclass(frozen=True)
class Window:
    """A window of traffic: from and until, in seconds since 1970, and its rows."""

    start_s: float
    stop_s: float
    rows: int
    """Of a sampled log as many as what was drawn says as much as."""
    stand_for: int | None = None
    """How many were served, where that is known."""


def served_pairs(windows: Iterable[Window]) -> list[tuple[Window, Window]]:
    """Return each two windows running with enough rows, in order: skew is by the first that can be judged."""
    served = [one for one in windows if one.rows >= FEWEST_ROWS]
    return [(before, one) for one in served if (before := _before(one, served))]


def running(windows: Sequence[Window]) -> tuple[Window, ...]:
    """Return the window before the last one, where it is there with enough rows, and the last one."""
    window = windows[-1]
    before = _before(window, [one for one in windows if one.rows >= FEWEST_ROWS])
    return (window,) if before is None else (before, window)


def serving_baseline(windows: Sequence[Window], *, since_s: float | None = None) -> tuple[Window, ...]:
    """Return the first windows that were served, without the last one and the one before it: what is judged is no part.

    The first of all, or those since a time. Fewer than ``wanted_windows`` may be too few to judge by.
    """
    usable = [one for one in windows if one.rows >= FEWEST_ROWS and (since_s is None or one.start_s >= since_s)]
    earlier = [one for one in usable if one.stop_s <= running(windows)[0].start_s]
    if not earlier:
        return ()
    first, length = earlier[0], earlier[0].stop_s - earlier[0].start_s
    until = (first.start_s if since_s is None else since_s) + baseline_windows(length) * length
    return tuple(one for one in earlier if one.stop_s <= until)


def baseline_windows(length_s: float) -> int:
    """Return how many windows of a length a serving baseline has at most."""
    return max(BASELINE_WINDOWS, round(BASELINE_S / length_s))


def wanted_windows(length_s: float) -> int:
    """Return how many windows of a length a serving baseline needs where each hour of the week has traffic.

    Each day, or hour, of the week takes one more, and is needed three times: 20 of a week, 26 of a day, three weeks of
    shorter ones.
    """
    phases = max(1, round(WEEK_S / length_s))
    return max(fewest_own(phases), FEWEST_IN_PHASE * phases)


def baseline_days(length_s: float) -> int:
    """Return for how many days hours have to be kept, so that once each a serving baseline has the windows it needs.

    They are those, and the two that are judged; a day more, since these are judged after they ended.
    """
    return math.ceil((wanted_windows(length_s) + lag_of(length_s) + 1) * length_s / DAY_S) + 1


def _before(window: Window, windows: Iterable[Window]) -> Window | None:
    """Return the window that makes two running with this one: the newest a whole number of days or lengths before."""
    length = window.stop_s - window.start_s
    lags = ((window.start_s - one.start_s) / (lag_of(length) * length) for one in windows)
    near = ((lag, one) for lag, one in zip(lags, windows, strict=True) if lag > 0.5 and abs(lag - round(lag)) < 1e-3)
    return min(near, key=lambda found: found[0], default=(0, None))[1]
