"""Is a window, or are two running, unlike the reference's own windows: ranks among them. Pure.

**One window.** Let the reference's B own windows and the one that is judged be exchangeable. Each of the B + 1 is
studentised by the others, contrast by contrast: its distance from their mean in standard deviations, which is the
externally studentised residual of Cook and Weisberg, "Residuals and Influence in Regression" (1982), section 2.2.1.
Its variance includes that of the mean (the factor ``1 + 1 / B``), and those of few windows are moderated
(``shrinkage``). A window's score is the largest distance of all contrasts of all columns. The share of the B + 1
windows that score at least as much is a p-value, however many columns there are and whatever they depend on each other:
full conformal prediction of Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World" (2005).

**Two running.** The score of a pair of windows is the largest over contrasts of the smaller of its two distances, if
both are in the same direction: what moved has to have moved twice, the same way. Each pair of the B + 2 windows is
studentised by the B others, and the pair of the last two is ranked among all of them. With 20 own windows there are
231 pairs, so that a p-value can be .0044, where that of one window cannot be below .048; and since both windows must
show it, a single odd one (a storm, an outage) is none.

**Windows that follow each other** are more alike than others, and so are pairs of them. Let r be their correlation and
T(t, r) the probability that two normal variables with correlation r both exceed t. A distance t that both windows of
the judged pair reach counts as the u with ``T(u, 0) = T(t, r)``. By Owen, "Tables for computing bivariate normal
probabilities", Ann. Math. Stat. 27 (1956), ``T(t, r) = Phi(-t) - 2 OwenT(t, sqrt((1 - r) / (1 + r)))``.

**Phases.** Windows of a weekday or of an hour differ from others by more than chance. Each window is then compared with
the mean of those of its phase, while all phases together say how much windows vary. Of windows shorter than a day two
running are the same hours of two days: what one day has in common is in all of its windows, and says nothing twice. So
pairs that are ranked are as far apart at least: both windows of one day would show its level, and rank before any two.
And each window is studentised without those less than a day from it: a window that is judged has none of its own day
among the own ones, and a day with a level of its own would hide in the variance that its other windows make.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri, owens_t, stdtr, stdtrit

from raymlops.monitor.contrasts import KINDS, NULLS
from raymlops.monitor.shrinkage import moderate

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MAX_PAIRS = 1_000
"""Pairs that are ranked: all of them up to 43 own windows, else as many drawn at random, which leaves ranks valid."""
_AT_ONCE = 20_000
"""Numbers of pairs times contrasts that are held at once, so that they stay in a core's cache."""
_FAR = 5.0
"""From here on T(t, r) is taken to fall like ``exp(-t^2 / (1 + r))``, since its difference has no digits left."""


@dataclass(frozen=True)
class Own:
    """The reference's own windows, by their contrasts.

    Attributes:
        values: Of shape (windows, contrasts), windows in the order of time.
        kinds: The kind of each contrast as a number; the variances of one kind are drawn towards each other.
        floors: The least that the variance of each contrast is taken to be.
        phases: The phase of each window: 0, 1, ...; all 0 where there are none.
        lag: How many windows two running are apart: 1, or as many as a day has.
        slots: When each window begins, in windows from the one that is judged, 0; None where they are the ones right
            before it and the one that is ``lag`` before it.
        columns: The column of each contrast: 0, 1, ...; None where each is one of its own.
    """

    values: Floats
    kinds: Ints
    floors: Floats
    phases: Ints
    lag: int = 1
    slots: Ints | None = None
    columns: Ints | None = None

    def variances(self) -> Floats:
        """Return those of contrasts within their phases, of shape (contrasts,)."""
        degrees = max(len(self.values) - len(np.unique(self.phases)), 1)
        return np.asarray((within(self.values, self.phases) ** 2).sum(axis=0) / degrees)

    def correlation(self, lag: int = 1) -> Floats:
        """Return that of windows ``lag`` apart in the column of each contrast, from 0 to .99, of shape (contrasts,).

        Where a column's location moves from day to day, so do its shapes, by a function of it: all contrasts of a
        column but its nulls have one correlation, that of their sums of squares. That it comes out too low by
        (1 + 3 r) / B is corrected: Marriott and Pope, "Bias in the estimation of autocorrelations", Biometrika 41
        (1954). B windows tell it to about 1 / sqrt(B): where columns differ by hardly more than that, they are drawn
        towards their mean, but down by a standard error at most, since one column that moves among many that do not is
        no chance. Efron and Morris, "Limiting the risk of Bayes and empirical Bayes estimators", J. Am. Stat. Assoc. 67
        (1972).
        """
        residual, noise = within(self.values, self.phases), 1 / len(self.values)
        squares, lagged = (residual**2).sum(axis=0), (residual[lag:] * residual[:-lag]).sum(axis=0)
        varies = squares > 1e-6 * len(residual) * self.floors  # Less is what is left of arithmetic.
        columns = np.arange(len(self.kinds)) if self.columns is None else self.columns
        nulls = self.kinds % len(KINDS) == KINDS.index(NULLS)
        _, owner = np.unique(columns * 2 + nulls, return_inverse=True)
        total = np.bincount(owner, squares * varies)
        found = np.bincount(owner, lagged * varies) / np.where(total > 0, total, 1.0)
        each = np.where(total > 0, (found + noise) / (1 - 3 * noise), 0.0)
        known = each[(total > 0) & (np.bincount(owner, nulls) == 0)]
        if len(known) > 1:
            mean, spread = known.mean(), max(float(known.var(ddof=1)) - noise, 0.0)
            drawn = mean + (each - mean) * spread / (spread + noise)
            least = each - (1 - np.square(each)) * math.sqrt(noise)
            each = np.where(total > 0, np.maximum(least, drawn), 0.0)
        return np.clip(each, 0.0, 0.99)[owner]


@dataclass(frozen=True)
class Ranked:
    """What was judged, among what the reference has of its kind.

    Attributes:
        p: The share of windows (or pairs) that score at least as much, its own included.
        others: The scores of the others, descending.
        distances: Of each contrast, signed, in standard deviations of own windows; of two, what both reach.
        degrees: The degrees of freedom of each distance.
        furthest: How far the furthest other window is in each contrast; of two running, nothing.
    """

    p: float
    others: Floats
    distances: Floats
    degrees: Floats
    furthest: Floats = field(default_factory=lambda: np.zeros(0))

    def critical(self, level: float) -> float:
        """Return the distance that has to be exceeded for a p-value of at most ``level``; infinite where none can."""
        allowed = int(level * (len(self.others) + 1) + 1e-9)
        return float(self.others[allowed - 1]) if allowed else float("inf")

    def p_values(self) -> Floats:
        """Return two-sided p-values of Student's t, each as if it were the only one, of shape (contrasts,)."""
        return np.asarray(2 * stdtr(self.degrees, -np.abs(self.distances)))


def rank_one(own: Own, window: Floats, *, phase: int = 0, shrink: float | Floats = 1.0) -> Ranked:
    """Rank one window, of shape (contrasts,), among the own ones; its distances are multiplied by ``shrink`` first."""
    values, phases = np.vstack([own.values, window]), np.append(own.phases, phase)
    residual = within(values, phases)
    # The other part of a hat matrix's diagonal; 0 for the only window of its phase, which nothing can be said of.
    free = np.maximum(1 - 1 / np.bincount(phases)[phases], 1e-12)[:, None]
    degrees, squares, beside = len(values) - 1 - len(np.unique(phases)), residual**2 / free, _beside(own, [0])
    left = (residual**2).sum(axis=0) - squares - beside @ squares
    left /= np.maximum(degrees - beside.sum(axis=1), 1)[:, None]
    variances, freedom = _moderated(left, own, degrees)
    distances = residual / np.sqrt(variances * free)
    distances[-1] *= shrink
    scores = np.abs(distances).max(axis=1)
    found = _ranked(scores[-1], scores[:-1], distances=distances[-1], degrees=freedom[-1])
    return replace(found, furthest=np.abs(distances[:-1]).max(axis=0))


def rank_two(
    own: Own,
    windows: Floats,
    *,
    correlation: Floats | float = 0.0,
    phases: tuple[int, int] = (0, 0),
    shrink: float | Floats = 1.0,
) -> Ranked:
    """Rank two windows that follow each other, of shape (2, contrasts), among all pairs as far apart or more.

    ``correlation`` is that of windows that follow each other; the two windows' distances are multiplied by ``shrink``.
    """
    values, phase = np.vstack([own.values, windows]), np.append(own.phases, phases)
    residual, sizes = within(values, phase), np.bincount(phase)[phase]
    total, squares = (residual**2).sum(axis=0), residual**2 / np.maximum(1 - 1 / sizes, 1e-12)[:, None]
    degrees, near = len(values) - 2 - len(np.unique(phase)), _beside(own, [-own.lag, 0])

    def distances(i: Ints, j: Ints) -> tuple[Floats, Floats, Floats]:
        """Return the signed distances of the first and second window of each pair, and their degrees of freedom."""
        # Residuals of two windows from the others are (I - H)^-1 times theirs, H the two rows and columns of the hat
        # matrix of phases: [[a, -c], [-c, b]] = I - H. Windows alone in their phase say nothing.
        a, b = (1 - 1 / sizes[i])[:, None], (1 - 1 / sizes[j])[:, None]
        c = np.where(phase[i] == phase[j], 1 / sizes[i], 0.0)[:, None]
        determinant = np.maximum(a * b - c * c, 1e-12)
        x, y = residual[i], residual[j]
        first, second = b * x + c * y, c * x + a * y
        # Those beside them each count as if alone in their phase: two of one phase are weeks apart, and change little.
        beside = near[i] | near[j]
        left = total - (x * first + y * second) / determinant - (beside @ squares if own.lag > 1 else 0.0)
        left /= np.maximum(degrees - beside.sum(axis=1), 1)[:, None]
        variances, freedom = _moderated(left, own, degrees)
        scale = 1 / np.sqrt(variances * determinant)
        return first * scale / np.sqrt(b + 1e-12), second * scale / np.sqrt(a + 1e-12), freedom

    first, second = _pairs(_slots(own, [-own.lag, 0]), apart=own.lag)
    others = []
    for part in np.array_split(np.arange(len(first) - 1), -(-len(first) * values.shape[1] // _AT_ONCE)):
        one, two, _ = distances(first[part], second[part])
        # What both reach is the smaller of the two above the mean, or of the two below it.
        above, below = np.minimum(one, two).max(axis=1), -np.maximum(one, two).min(axis=1)
        others.append(np.maximum(np.maximum(above, below), 0.0))
    one, two, freedom = (found[0] for found in distances(first[-1:], second[-1:]))
    one, two = one * shrink, two * shrink
    both = np.maximum(np.minimum(one, two), 0.0) + np.minimum(np.maximum(one, two), 0.0)
    judged = np.sign(both) * as_unrelated(np.abs(both), correlation, windows=len(own.values))
    return _ranked(float(np.abs(judged).max()), np.concatenate(others), distances=judged, degrees=freedom)


def as_unrelated(distances: Floats, correlation: Floats | float, *, windows: float = math.inf) -> Floats:
    """Return what two unrelated windows both reach as seldom as two with ``correlation`` reach ``distances``.

    Of so many own ``windows``, related ones tell a variance no better than the unrelated ones that they are worth: by
    Student's t with as few degrees of freedom a distance counts for less. A correlation that they tell is taken to be a
    standard error higher, or twice as high: what it is too low by makes alarms, what it is too high by later ones.
    """
    if math.isfinite(windows):
        correlation = correlation + np.minimum(correlation, windows**-0.5) * (1 - np.square(correlation))
        worth = np.maximum(windows * (1 - correlation) / (1 + correlation), 2.0)
        tail = np.maximum(stdtr(worth - 1, -distances), 1e-250)
        distances = np.minimum(distances, -stdtrit(windows - 1, tail))
    near = np.minimum(distances, _FAR)
    both = ndtr(-near) - 2 * owens_t(near, np.sqrt((1 - correlation) / (1 + correlation)))
    unrelated = -ndtri(np.sqrt(np.clip(both, 1e-300, 1.0)))
    beyond = np.maximum(distances - _FAR, 0) / np.sqrt(1 + correlation)
    return np.asarray(np.maximum(unrelated, 0.0) + beyond)


def _ranked(score: float, others: Floats, *, distances: Floats, degrees: Floats) -> Ranked:
    p = (int((others >= score).sum()) + 1) / (len(others) + 1)
    return Ranked(p, np.sort(others)[::-1], distances, degrees)


def _moderated(variances: Floats, own: Own, degrees: int) -> tuple[Floats, Floats]:
    found, freedom = moderate(np.maximum(variances, own.floors / 10), degrees, own.kinds)
    return np.maximum(found, own.floors), freedom


def within(values: Floats, phases: Ints) -> Floats:
    """Return the distance of each window from the mean of its phase."""
    member = (phases == np.arange(phases.max() + 1)[:, None]).astype(np.float64)
    means = member @ values / np.maximum(member.sum(axis=1), 1)[:, None]
    return np.asarray(values - means[phases])


def _slots(own: Own, judged: list[int]) -> Ints:
    """Return when own windows begin, and then those that are judged."""
    slots = np.arange(-len(own.values), 0) - own.lag if own.slots is None else own.slots
    return np.append(slots, judged)


def _beside(own: Own, judged: list[int]) -> npt.NDArray[np.bool_]:
    """Return which windows are less than a day from each one, of shape (windows, windows); not itself."""
    slots = _slots(own, judged)
    apart = np.abs(slots[:, None] - slots)
    return np.asarray((apart < own.lag) & ~np.eye(len(slots), dtype=np.bool_))


def _pairs(slots: Ints, *, apart: int) -> tuple[Ints, Ints]:
    """Return the pairs of windows that are ``apart`` or more, the last two last."""
    first, second = np.triu_indices(len(slots), k=1)
    far = np.abs(slots[first] - slots[second]) >= apart
    first, second = first[far], second[far]
    if len(first) > MAX_PAIRS:
        # A permutation test with drawn permutations is exact as well, if the observed one is among them.
        drawn = np.sort(np.random.default_rng(0).choice(len(first) - 1, MAX_PAIRS - 1, replace=False))
        chosen = np.append(drawn, len(first) - 1)
        first, second = first[chosen], second[chosen]
    return first.astype(np.int64), second.astype(np.int64)
