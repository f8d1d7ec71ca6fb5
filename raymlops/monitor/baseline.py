"""Which windows of traffic are compared with what: skew is not drift. Pure.

**Skew**: a version's training against the first windows that it served. What differs there differs for good (a feature
is computed otherwise, other callers ask), so it is told once. **Drift**: later windows against a serving baseline, the
first windows since traffic began or since somebody said that what comes now is normal. Until there are enough of them
training stands in, if it was not skewed. What comes in does not depend on the version that answers, so windows of
inputs run over versions; what goes out does, so windows of outputs are a version's.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from raymlops.monitor.drift import FEWEST_ROWS
from raymlops.monitor.outcome import FEWEST_OWN
from raymlops.monitor.own_windows import DAY_S, lag_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

BASELINE_WINDOWS, BASELINE_S = 60, 28 * DAY_S
"""Of a serving baseline at most, whichever is longer: windows below a week take three weeks, to have each hour of
it three times. With more a slow drift would be compared with itself."""


@dataclass(frozen=True)
class Window:
    """A window of traffic: from and until, in seconds since 1970, what answered (None: any version), and its rows."""

    start_s: float
    stop_s: float
    version: int | None
    rows: int


@dataclass(frozen=True)
class DriftComparison:
    """What a window is compared with.

    Attributes:
        window: That is judged.
        before: The one before it, for two running; None where it is missing.
        baseline: Windows that are own ones; empty where training is the reference.
    """

    window: Window
    before: Window | None
    baseline: tuple[Window, ...]


@dataclass(frozen=True)
class Waiting:
    """Why there is nothing to compare with yet, and how many windows there are of how many that are needed."""

    reason: str
    windows: int
    needed: int


@dataclass(frozen=True)
class Acknowledgement:
    """Somebody knows that these columns drifted, since ``at_s``."""

    columns: frozenset[str]
    at_s: float


def of_inputs(windows: Iterable[Window]) -> tuple[Window, ...]:
    """Return windows of inputs, in the order of time: those of the same time are one, whatever version answered."""
    ordered = sorted(windows, key=lambda one: (one.start_s, one.stop_s))
    return tuple(
        Window(start, stop, None, sum(one.rows for one in same))
        for (start, stop), same in groupby(ordered, key=lambda one: (one.start_s, one.stop_s))
    )


def of_outputs(windows: Iterable[Window], *, version: int) -> tuple[Window, ...]:
    """Return the windows of what a version answered, in the order of time."""
    return tuple(sorted((one for one in windows if one.version == version), key=lambda one: one.start_s))


def first_served(windows: Iterable[Window], *, version: int, told: Collection[int]) -> tuple[Window, Window] | None:
    """Return the two windows that training is compared with for skew: the first with enough rows that are two running.

    None while they are not there, and once skew of this version was told: it cannot end, so to tell it again says
    nothing.
    """
    if version in told:
        return None
    served = [one for one in of_outputs(windows, version=version) if one.rows >= FEWEST_ROWS]
    return next(((before, one) for one in served if (before := _before(one, served))), None)


def drift_comparison(windows: Sequence[Window], *, since_s: float, skewed: bool) -> DriftComparison | Waiting:
    """Return what the last of ``windows`` is compared with.

    Args:
        windows: Of inputs, or of one version's outputs, in the order of time.
        since_s: When the baseline begins: with traffic, or with the last renewal.
        skewed: Whether training was found to differ from the first windows served.
    """
    usable = [one for one in windows if one.start_s >= since_s and one.rows >= FEWEST_ROWS]
    if not usable or usable[-1] is not windows[-1]:
        return Waiting(f"the window has fewer than {FEWEST_ROWS} rows, or is older than the baseline", len(usable), 1)
    window = usable[-1]
    before = _before(window, usable)
    # What is judged is no part of what it is compared with: neither window of two running is.
    earlier = [one for one in usable if one.stop_s <= (before or window).start_s]
    if len(earlier) >= FEWEST_OWN:
        until = earlier[0].start_s + max(BASELINE_S, BASELINE_WINDOWS * (window.stop_s - window.start_s))
        return DriftComparison(window, before, tuple(one for one in earlier if one.stop_s <= until))
    if skewed:
        reason = (
            f"training differs from what is served, and the serving baseline has {len(earlier)} of {FEWEST_OWN} windows"
        )
        return Waiting(reason, len(earlier), FEWEST_OWN)
    return DriftComparison(window, before, ())


def untold(flagged: Iterable[str], acknowledged: Iterable[Acknowledgement], *, since_s: float) -> tuple[str, ...]:
    """Return the columns that nobody knows of; what was acknowledged before the baseline of ``since_s`` is over."""
    known = frozenset[str]().union(*(one.columns for one in acknowledged if one.at_s >= since_s))
    return tuple(column for column in flagged if column not in known)


def _before(window: Window, windows: Iterable[Window]) -> Window | None:
    """Return the window that makes two running with this one: the one that ends where it starts, or a day before."""
    length = window.stop_s - window.start_s
    start = window.start_s - lag_of(length) * length
    return next((one for one in windows if abs(one.start_s - start) + abs(one.stop_s - start - length) < 1), None)
