"""Which blocks of a reference make one window of its own, so that they can be compared with a window of traffic. Pure.

A reference is kept as consecutive blocks. Where only their order is known, as many blocks as have the window's rows are
an own window. So they are where rows are known to be independent, whatever their order is: any split of them is as good
as another. (Windows drawn from the shares of the whole reference are not: those shares are its own, and a category that
is common in it by chance is less common in every window to come.) Of shuffled rows that are not independent there are
none. Where the times of blocks are known, an own window is as long in time as the window of traffic and starts a whole
number of its lengths before it; windows shorter than a week then have a phase, the hours of the week that they cover.
Where the reference has too few weeks for that, none can be judged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

HOUR_S = 3_600.0
DAY_S = 86_400.0
WEEK_S = 7 * DAY_S
WANTED = 30
"""Own windows by rows, where there are so many blocks."""
FEWEST_IN_PHASE = 3
"""Own windows of each phase: two more than the mean takes, so that each phase has a say in how much windows vary."""


@dataclass(frozen=True)
class OwnWindows:
    """Own windows as ranges of blocks.

    Attributes:
        ranges: ``(start, stop)`` of each, in the order of time.
        rows: The median of their rows.
        phases: The phase of each; all 0 where there are none.
        phase: That of the window before the one of traffic, and of that one.
        lag: How many windows the two are apart: one, or as many as a day has.
        why_few: What there would have to be for more of them.
        slots: When each begins, in windows from that of traffic; None where their times are not known.
    """

    ranges: tuple[tuple[int, int], ...]
    rows: float
    phases: tuple[int, ...]
    phase: tuple[int, int] = (0, 0)
    lag: int = 1
    why_few: str = ""
    slots: tuple[int, ...] | None = None

    def sums(self, blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the counts of each window, of shape (windows, ...), from those of blocks, of shape (blocks, ...)."""
        running = np.concatenate([np.zeros((1, *blocks.shape[1:]), np.int64), np.cumsum(blocks, axis=0)])
        edges = np.asarray(self.ranges, dtype=np.int64).reshape(-1, 2)
        return np.asarray(running[edges[:, 1]] - running[edges[:, 0]])


def by_rows(block_rows: npt.NDArray[np.int64], *, rows: int) -> OwnWindows:
    """Return windows of about ``rows`` rows from blocks of equally many rows, the newest whole, the oldest left out."""
    if not len(block_rows) or not block_rows.sum():
        return OwnWindows((), 0.0, (), why_few="the reference has no rows")
    each = float(block_rows.mean())
    step = max(1, round(rows / each))
    # Shorter own windows differ more than those of as many rows would, so that an alarm takes more.
    step = min(step, len(block_rows) // WANTED) if len(block_rows) >= WANTED else step
    count = len(block_rows) // step
    first = len(block_rows) - count * step
    ranges = tuple((first + at * step, first + (at + 1) * step) for at in range(count))
    few = f"the reference has {int(block_rows.sum()):,} rows: take shorter windows"
    return OwnWindows(ranges, each * step, (0,) * count, why_few=few)


def by_time(
    block_rows: npt.NDArray[np.int64],
    starts_s: npt.NDArray[np.float64],
    stops_s: npt.NDArray[np.float64],
    *,
    window_s: tuple[float, float],
    before_s: float | None = None,
) -> OwnWindows:
    """Return windows as long as that of traffic from ``window_s[0]`` to ``window_s[1]``, in seconds since 1970.

    ``starts_s`` and ``stops_s`` are the times of blocks, ascending. Local time is the caller's to subtract: a week has
    168 hours here. A block belongs to the window that its middle is in; those that begin and end where windows do are
    exactly such windows. A block without rows is a time without traffic, and no window is made of such blocks alone.
    The window before that of traffic starts at ``before_s``, by default a day before, or where it ends as that starts.
    """
    start, stop = window_s
    length = stop - start
    middles, filled = (starts_s + stops_s) / 2, block_rows > 0
    if not filled.any() or float(np.median((stops_s - starts_s)[filled])) > length:
        return OwnWindows((), 0.0, (), why_few="the reference's blocks are longer than the window: take longer windows")
    slots = np.floor((middles - start) / length).astype(np.int64)
    # A slot that the reference covers in part is no window: those of its first and last block are whole by time.
    inside = (start + slots * length >= starts_s[0] - 1e-6) & (start + (slots + 1) * length <= stops_s[-1] + 1e-6)
    found = np.unique(slots[inside & filled])
    edges = np.searchsorted(slots, found, "left"), np.searchsorted(slots, found, "right")
    ranges = tuple((int(a), int(b)) for a, b in zip(*edges, strict=True))
    rows = float(np.median([block_rows[a:b].sum() for a, b in ranges])) if ranges else 0.0
    weeks = (stops_s[-1] - starts_s[0]) / WEEK_S
    cycle = WEEK_S / length
    if length >= WEEK_S - 1:
        whole = abs(length / WEEK_S - round(length / WEEK_S)) < 1e-3
        few = f"the reference has {weeks:.1f} weeks: take a longer reference"
        return OwnWindows(ranges, rows, (0,) * len(ranges), why_few=few) if whole else _refused(length)
    if abs(cycle - round(cycle)) > 1e-3:
        return _refused(length)
    slots_of_week, lag = round(cycle), lag_of(length)
    gap = lag if before_s is None else round((start - before_s) / length)
    phases = [int(slot) % slots_of_week for slot in found]
    numbers = np.bincount(phases, minlength=slots_of_week) if phases else np.zeros(slots_of_week)
    if numbers[0] < FEWEST_IN_PHASE:
        few = f"the reference has {weeks:.1f} weeks, and this hour of the week is needed {FEWEST_IN_PHASE} times"
        # In as many weeks, hours are all there often enough; of longer windows one is lost where the reference begins.
        shorter = weeks >= FEWEST_IN_PHASE and length > HOUR_S
        ways = "shorter windows, or a longer reference" if shorter else "a longer reference"
        return OwnWindows((), rows, (), why_few=f"{few}: take {ways}")
    # Hours that hardly ever have traffic, as at night or at a week's end, are no part of what is normal.
    kept = [at for at, phase in enumerate(phases) if numbers[phase] >= FEWEST_IN_PHASE]
    dense = {phase: at for at, phase in enumerate(np.flatnonzero(numbers >= FEWEST_IN_PHASE).tolist())}
    return OwnWindows(
        tuple(ranges[at] for at in kept),
        rows,
        tuple(dense[phases[at]] for at in kept),
        (dense.get(-gap % slots_of_week, len(dense)), 0),  # alone in its phase it says nothing
        lag,
        why_few=f"the reference has {weeks:.1f} weeks: take shorter windows",
        slots=tuple(int(found[at]) for at in kept),
    )


def most_own(
    block_rows: npt.NDArray[np.int64],
    starts_s: npt.NDArray[np.float64],
    stops_s: npt.NDArray[np.float64],
    *,
    length_s: float,
) -> OwnWindows:
    """Return the own windows of that window of the week after the reference which has most of them, as ``by_time``."""
    first, number = int(stops_s[-1] // length_s) + 1, max(1, round(WEEK_S / length_s))
    spans = ((at * length_s, (at + 1) * length_s) for at in range(first, first + number))
    found = [by_time(block_rows, starts_s, stops_s, window_s=span) for span in spans]
    return max(found, key=lambda own: len(own.ranges))


def lag_of(length_s: float) -> int:
    """Return how many windows two running are apart: as many as a day has, or one."""
    return max(1, round(DAY_S / length_s))


def _refused(length: float) -> OwnWindows:
    few = f"windows of {length / 3600:g} h fit no whole number of times into a week, nor whole weeks into them"
    return OwnWindows((), 0.0, (), why_few=f"{few}: take 1, 6, 12, 24 or 168 h")
