"""Where rows that have times are cut into blocks, so that windows of traffic are whole numbers of blocks. Pure.

Owns which bounds blocks have. A slot begins a whole number of its lengths after the start of 1970, in UTC, as windows
do; windows of 1, 6, 12, 24 and 168 h are whole numbers of slots that are not longer. Times without rows, as nights, are
blocks of their own, without rows: no other block says less than it seems of when its rows arose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from raymlops.profiles.learn import PRIVATE_ROWS

if TYPE_CHECKING:
    import numpy.typing as npt

    from raymlops.profiles.layout import Edges

_HOUR_S, _DAY_S, _WEEK_S = 3600.0, 86_400.0, 604_800.0
_BORDERS = (_HOUR_S, 6 * _HOUR_S, 12 * _HOUR_S, _DAY_S, _WEEK_S)
"""Lengths of windows: blocks of few rows are put together within the shortest in which they are enough."""
_WITHIN_A_DAY = (1.0, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 1800.0, *(hours * _HOUR_S for hours in (1, 2, 3, 6, 12, 24)))
_LENGTHS = (*_WITHIN_A_DAY, *(_WEEK_S * 2**more for more in range(36)))
_SHORT_S = 300.0
"""Slots are shorter only where there would be fewer than two blocks."""
_EXACT = float(1 << 53)
"""Seconds beyond which a sum of floats need not be exact: no time."""
_NOTICED = 1 / 24
"""The share of a slot that may be without rows at the reference's begin or end: an hour of a day."""


def bounds_of(times: Edges, *, rows: int, most: int) -> Edges:
    """Return rising bounds of at most ``most`` blocks, from a sample of the times of ``rows`` rows, in seconds.

    Slots are as short as that allows, of at least 5 min where that makes two. A row is in its block for at least the
    least time between two times: where rows have dates, a block is a day. Blocks of few rows count together as one, so
    that ten years of which one month has nearly all rows have blocks of hours in that month, and of weeks or months
    elsewhere. No bound is a row's own time that is not the begin of a slot: a first or last slot that is covered in
    part begins or ends at its middle. There are no bounds of fewer than two blocks.
    """
    found, counts = np.unique(times[np.abs(times) < _EXACT], return_counts=True)
    bounds = np.zeros(0)
    if len(found) < 2 or most < 2:
        return bounds
    each, grain, span = rows / counts.sum(), float(np.diff(found).min()), float(found[-1] - found[0])
    shortest = max(length for length in _LENGTHS if length <= max(grain, _LENGTHS[0]))
    longest = min(length for length in _LENGTHS if length > span)
    # A round number: a time between two rows is theirs.
    lasting = float(np.ceil(grain / shortest) * shortest)
    # From long ones to short ones, so that few are ever put together.
    for length in (length for length in reversed(_LENGTHS) if shortest <= length <= longest):
        if length < _SHORT_S and len(bounds) > 2:
            break
        cut = _cut(found, length, lasting=max(length, lasting))
        inside = np.bincount(np.searchsorted(cut, found, "right") - 1, counts * each, minlength=len(cut) - 1)
        if np.count_nonzero(inside >= PRIVATE_ROWS) > most:
            break
        firsts = firsts_of(inside, cut[:-1])
        if len(firsts) > most:
            break
        bounds = np.append(cut[firsts], cut[-1])
        # A slot is whole that lacks no time that another would have, or too little to notice.
        if (late := found[0] - bounds[0]) >= grain and late > _NOTICED * length:
            bounds[0] += length / 2
        if bounds[-1] - found[-1] > max(grain, _NOTICED * length):
            bounds[-1] -= length / 2
    return bounds if len(bounds) > 2 else np.zeros(0)


def firsts_of(rows: npt.NDArray[np.number], starts: Edges) -> npt.NDArray[np.int64]:
    """Return the first of each group of blocks that has no rows, or at least ``PRIVATE_ROWS``.

    Blocks of fewer rows are put together with the next ones of their hour, or the previous ones where there are none;
    if they are still too few, of their six hours, and so on to the week, and at last with any.
    """
    firsts = np.arange(len(rows))
    for length in (*_BORDERS, None):
        totals = np.add.reduceat(rows, firsts) if len(firsts) else rows
        if not ((totals > 0) & (totals < PRIVATE_ROWS)).any():
            break
        cells = np.floor(starts[firsts] / length) if length else np.zeros(len(firsts))
        groups: list[list[float]] = []
        for first, total, cell in zip(firsts.tolist(), totals.tolist(), cells.tolist(), strict=True):
            if groups and groups[-1][2] == cell and 0 < groups[-1][1] < PRIVATE_ROWS:
                groups[-1][1] += total
            else:
                groups.append([first, total, cell])
        for at in range(len(groups) - 1, 0, -1):
            if 0 < groups[at][1] < PRIVATE_ROWS and groups[at - 1][2] == groups[at][2]:
                groups[at - 1][1] += groups.pop(at)[1]
        firsts = np.array([int(first) for first, _, _ in groups], dtype=np.int64)
    return firsts


def _cut(times: Edges, length: float, *, lasting: float) -> Edges:
    """Return the bounds of the slots of rising times, and of what is between them, cut where days begin."""
    starts = np.unique(np.floor(times / length)) * length
    stops = starts + lasting
    days = np.floor(starts / _DAY_S) * _DAY_S, np.ceil(stops / _DAY_S) * _DAY_S
    before, after = np.append(starts[0], stops[:-1]), np.append(starts[1:], stops[-1])
    return np.unique(
        np.concatenate([starts, stops[stops <= after], days[0][days[0] >= before], days[1][days[1] <= after]])
    )
