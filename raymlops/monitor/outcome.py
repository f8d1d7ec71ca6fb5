"""What ranks lead to: the levels of a warning and of an alarm, and when too little is known for either. Pure.

``alarm``: two windows running are unlike own pairs at ``ALARM_LEVEL``, in a contrast that moved the same way in both;
or one window alone is so far off that chance does not explain it, and by much (a unit slipped, a column gone null).
``warn``: one window is unlike. ``insufficient``: the own windows are too few to say either.

**Parts.** Columns whose own windows are others, as those that a person acknowledged, cannot be ranked with the rest. k
parts are ranked on their own, each at a ``share`` of 1 / k of every level, and the worst counts: Bonferroni, whatever
parts depend on each other. What is furthest off among all own ones counts at any share, or few own windows would say
nothing ever. That is the p-value 1 / 435 of two running among 28 own windows, so that two parts keep the level of an
alarm, and each further one of so few adds .0023; it is 1 / 231 of 20, of which two may be .0087. Of warnings it is
1 / 29 of 28 own windows: beside 60 of training .057 of windows, of two parts of 20 up to .095.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from raymlops.monitor.conformal import Own, Ranked, rank_one, rank_two
from raymlops.monitor.contrasts import ENDS, KINDS, LOCATION, SHARE, share_of

if TYPE_CHECKING:
    from collections.abc import Sequence

Floats = npt.NDArray[np.float64]
Outcome = Literal["ok", "warn", "alarm", "insufficient"]

WARN_LEVEL = 0.05
"""Of windows that are warned of or alarmed: a rank has ``ALARM_LEVEL`` less. Of 60 own windows the third highest was
warned of in .0545 of windows with alarms."""
ALARM_LEVEL = 0.005
"""Of two windows running. Half of the .01 that alarms may have in all: the rest is for windows that depend on each
other in more than their correlation, and for alarms on one window."""
SINGLE_LEVEL = 0.001
"""Of one window, by Student's t after Holm. It takes windows to be nearly normal, which ranks do not."""
SINGLE_SHIFT, SINGLE_SHARE = 0.5, 0.1
"""The change that such an alarm needs as well: half a standard deviation of ranks or of Fisher's z (no correlation
becomes .46), or ten points of a share; ..."""
SINGLE_FACTOR = 2.0
"""... and to be so much further off than any own window is in the same column, and than all but those of one day are in
any: few rows that depend on each other are far from normal (AR(.99), 500 rows: Student's t alone says .001 in .017 of
windows, and one in 1,000 is 1.5 times as far). A column that was odd on one day disables no other."""
FEWEST_ROWS = 100
"""Of a window, or of a slice in it: fewer rows show nothing that own windows have not."""
FEWEST_OWN = 20
"""Own windows of one phase below which nothing is said: with 18 the rank of one window cannot be below .05."""
FEWEST_EFFECTIVE = 12.0
"""Unrelated windows that own windows have to be worth for a contrast to be judged. Those of correlation r are worth
(1 - r) / (1 + r) of their number: Bartlett, "Some aspects of the time-correlation problem", J. R. Stat. Soc. 98 (1935).
"""


@dataclass(frozen=True)
class Comparison:
    """One window, or two running, among own windows.

    Attributes:
        outcome: ``ok``, ``warn``, ``alarm`` or ``insufficient``.
        effective: Unrelated windows that the own ones are worth, of shape (contrasts,).
        one: The last window; None where the own windows are too few.
        two: It and the one before; None where there is none.
        p: Of each contrast of the last window, by Student's t after Holm.
        single: Contrasts that lead to an alarm on the last window alone.
        share: Of the levels, that these contrasts have.
    """

    outcome: Outcome
    effective: Floats
    one: Ranked | None
    two: Ranked | None
    p: Floats
    single: npt.NDArray[np.bool_]
    share: float = 1.0

    @property
    def running(self) -> bool:
        """Return whether two windows running are an alarm."""
        return self.two is not None and self.two.p <= alarm_level(self.two, self.share)

    @property
    def ranks(self) -> tuple[float | None, float | None]:
        """Return the p-values of one window and of two running as if all levels were theirs."""
        one = None if self.one is None else min(1.0, self.one.p / self.share)
        two = None if self.two is None else min(1.0, self.two.p / self.share)
        return one, ALARM_LEVEL if self.running and two is not None and two > ALARM_LEVEL else two

    @property
    def judged(self) -> npt.NDArray[np.bool_]:
        """Return which contrasts are ranked: not those whose own windows follow each other too closely.

        One window that is far off in those is an alarm all the same.
        """
        return self.effective >= FEWEST_EFFECTIVE

    @property
    def flagged(self) -> npt.NDArray[np.bool_]:
        """Return which contrasts lead to the outcome."""
        found = self.single.copy()
        if self.two is not None and self.running:
            found |= np.abs(self.two.distances) > self.two.critical(alarm_level(self.two, self.share))
        if self.outcome == "warn" and self.one is not None:
            found |= self.judged & (np.abs(self.one.distances) > self.one.critical(warn_level(self.one, self.share)))
        return found


def compare(
    own: Own,
    windows: Floats,
    *,
    phases: tuple[int, int] = (0, 0),
    share: float = 1.0,
) -> Comparison:
    """Compare a window, the last of ``windows`` of shape (1 or 2, contrasts), with own windows.

    ``phases`` are those of the window before it and of itself; ``share`` is that of every level.
    """
    own = _of_clumps(own)
    count, related = len(own.values), own.correlation()
    effective = count * (1 - related) / (1 + related)
    judged = effective >= FEWEST_EFFECTIVE
    none = np.zeros(windows.shape[1])
    if count < fewest_own(int(own.phases.max(initial=0)) + 1) or not judged.any():
        return Comparison("insufficient", effective, None, None, none + 1, none > 0)
    # The mean of related windows varies by more than 1 / B of a variance, and they vary less around it. Those of a day
    # are not counted here: ranks leave them out.
    daily = own.correlation(own.lag)
    worth = np.maximum(count * (1 - daily) / (1 + daily), 2)
    less = np.sqrt((1 + 1 / count) / (1 + 1 / worth) * (1 - 1 / worth) / (1 - 1 / count))
    every = rank_one(own, windows[-1], phase=phases[1], shrink=less)
    p = holm(every.p_values())
    usual = own.values[own.phases == phases[1]].mean(axis=0)
    single = is_large(own.kinds, usual, windows[-1]) & (p <= share * SINGLE_LEVEL)
    single &= np.abs(every.distances) > SINGLE_FACTOR * _furthest(own, every)
    kept = replace(own, values=own.values[:, judged], kinds=own.kinds[judged], floors=own.floors[judged])
    seen, less = windows[:, judged], less[judged]
    one = rank_one(kept, seen[-1], phase=phases[1], shrink=less)
    two = None
    if len(windows) == 2:
        two = _spread(rank_two(kept, seen, correlation=daily[judged], phases=phases, shrink=less), judged, none)
    warned: Outcome = "warn" if one.p <= warn_level(one, share) else "ok"
    found = Comparison(warned, effective, _spread(one, judged, every.distances), two, p, single, share)
    return replace(found, outcome="alarm") if found.running or single.any() else found


def _furthest(own: Own, every: Ranked) -> Floats:
    """Return how far own windows are at most in the column of each contrast, or but for one day in any column."""
    columns = np.arange(len(every.furthest)) if own.columns is None else own.columns
    most = np.full(int(columns.max(initial=0)) + 1, every.others[min(own.lag, len(every.others) - 1)])
    np.maximum.at(most, columns, every.furthest)
    return np.asarray(most[columns])


def _of_clumps(own: Own) -> Own:
    """Return own windows in which the share of an ordered column's outer values varies at least as its location does.

    Both vary by 1 / rows where rows are independent. Where they hang together, outer values come in clumps, which own
    windows may lack, and one that lies where two windows meet is in both. Not so values between others: a location that
    moves from day to day crosses those.
    """
    if own.columns is None:
        return own
    kinds, count = own.kinds % len(KINDS), int(own.columns.max(initial=0)) + 1
    located, ends = kinds == KINDS.index(LOCATION), kinds == KINDS.index(ENDS)
    least = np.zeros(count)
    least[own.columns[located]] = own.variances()[located]
    return replace(own, floors=np.where(ends, np.maximum(own.floors, least[own.columns]), own.floors))


def warn_level(one: Ranked, share: float = 1.0) -> float:
    """Return the level of a window's rank among its own: the highest is warned of in any case."""
    return max(share * (WARN_LEVEL - ALARM_LEVEL), 1 / (len(one.others) + 1))


def alarm_level(two: Ranked, share: float = 1.0) -> float:
    """Return the level of the rank of two windows running: the highest of all pairs is an alarm at any share."""
    return max(share * ALARM_LEVEL, min(ALARM_LEVEL, 1 / (len(two.others) + 1)))


def fewest_own(phases: int) -> int:
    """Return below how many own windows nothing is said: the mean of each phase after the first takes one."""
    return FEWEST_OWN + max(phases, 1) - 1


def _spread(found: Ranked, judged: npt.NDArray[np.bool_], others: Floats) -> Ranked:
    """Return what was found of the contrasts that are judged among all, those that are not with other distances."""
    distances, degrees = others.copy(), np.ones(len(judged))
    distances[judged], degrees[judged] = found.distances, found.degrees
    return replace(found, distances=distances, degrees=degrees)


def holm(p_values: Floats) -> Floats:
    """Return adjusted p-values.

    Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Stat. 6 (1979).
    """
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    found = np.empty(len(p_values))
    found[order] = np.minimum(stepped, 1.0)
    return found


def is_large(kinds: npt.NDArray[np.int64], before: Floats, after: Floats) -> npt.NDArray[np.bool_]:
    """Tell which contrasts changed by so much that one window may be enough for an alarm."""
    shift, points = np.abs(after - before), np.abs(share_of(after) - share_of(before))
    return np.where(_is_shape(kinds), shift >= SINGLE_SHIFT, points >= SINGLE_SHARE)


def floors(kinds: npt.NDArray[np.int64], rows: float | Floats) -> Floats:
    """Return the least variances of contrasts of windows of ``rows`` rows.

    Shares of independent rows vary by 1 / rows, and where a share is always 0 nothing else says by how much. A contrast
    of ordered values may vary by less (the same timetable each week), but not by nothing.
    """
    return np.asarray(np.where(_is_shape(kinds), 0.1, 1.0) / rows)


def kind_numbers(kinds: Sequence[str], *, group: int = 0) -> npt.NDArray[np.int64]:
    """Return kinds of contrasts as numbers, shares last; in each group, 0, 1, ..., they are kinds of their own."""
    return np.array([KINDS.index(kind) + group * len(KINDS) for kind in kinds], dtype=np.int64)


def _is_shape(kinds: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    return np.asarray(kinds % len(KINDS) < KINDS.index(SHARE))
