"""How much windows differ beyond what their requests explain: days share weather, campaigns, faults. Pure.

With y the loss of skill of a window, v its variance by requests and m its weight, windows that differ by the variance d
besides spread by ``E[sum(m (y - mean)^2)] = sum(m (1 - m / M) (v + d))``, M the sum of the weights: the method of
moments for random effects (DerSimonian and Laird, Controlled Clinical Trials 7, 1986), with weights by rows. Products
of neighbours show how much a day resembles the day before; requests have no part in that. The mean of n windows then
varies by ``d f(n, r) / n``, where f is that of a first-order autoregression with the correlation r.

A model that became worse must not look like days that differ. So spread is measured on either side of each window at
which that may have begun.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from raymlops.monitor.skill.clusters import Moments

MOST_ALIKE = 0.8
"""Correlation of neighbours, at most: of .9, windows of two years would be worth forty."""


@dataclass(frozen=True)
class Days:
    """How much windows differ: numbers, or arrays of one for each start.

    Attributes:
        variance: Of what windows have in common, as estimated; below 0 where requests spread more than windows.
        covariance: Of neighbours.
        degrees: Of freedom of both.
        chance: The variance of a window by its requests.
    """

    variance: Any = 0.0
    covariance: Any = 0.0
    degrees: Any = 0.0
    chance: Any = 0.0

    def __add__(self, other: Days) -> Days:
        """Return the mean of both; ``other`` counts less where its windows are smaller, and say less of days."""
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            spread, others = (one.chance + np.maximum(one.variance, 0.0) for one in (self, other))
            degrees = other.degrees * np.minimum(np.nan_to_num(np.divide(spread, others), nan=1.0), 1.0) ** 2
            whole = self.degrees + degrees
            ours, theirs = (np.nan_to_num(np.divide(one, whole)) for one in (self.degrees, degrees))
        variance = ours * self.variance + theirs * other.variance
        covariance = ours * self.covariance + theirs * other.covariance
        return Days(variance, covariance, whole, self.chance)

    def at(self, start: int) -> Days:
        """Return those of one start."""
        return Days(*(float(one[..., start]) for one in vars(self).values()))

    def of_mean(self, number: Any) -> Any:
        """Return the variance that this adds to the mean of so many windows of one weight."""
        n = np.maximum(number, 1.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            r = np.clip(np.nan_to_num(np.divide(self.covariance, self.variance)), 0.0, MOST_ALIKE)
        alike = (1 + r) / (1 - r) - 2 * r * (1 - r**n) / (n * (1 - r) ** 2)
        return np.maximum(self.variance, 0.0) * alike / n


def days_of(windows: Moments) -> Days:
    """Return how much windows differ, of shape (..., windows, 11): for each start, on either side of it."""
    found = windows.estimate()
    seen = np.isfinite(found.variance)
    y, v = (np.where(seen, values, 0.0) for values in (found.value, found.variance))
    m = np.where(seen, windows.sums[..., 1], 0.0)
    after, pair = np.roll(y, -1, axis=-1), np.sqrt(m * np.roll(m, -1, axis=-1))
    pair[..., -1] = 0.0
    terms = np.stack([seen, m, m * m, m * y, m * y * y, m * v, m * m * v], axis=-1)
    pairs = np.stack([pair, pair * (y + after), pair * y * after], axis=-1)
    whole = np.concatenate([terms, pairs], axis=-1)
    since = np.flip(np.cumsum(np.flip(whole, axis=-2), axis=-2), axis=-2)
    before = np.zeros_like(whole)
    before[..., 1:, :] = np.cumsum(whole, axis=-2)[..., :-1, :]
    before[..., 1:, 7:] = before[..., :-1, 7:].copy()  # no pair of the last window before and the first since
    spread = _spread(np.moveaxis(before, -1, 0)) + _spread(np.moveaxis(since, -1, 0))
    degrees, beyond, weight, products, weights = spread
    with np.errstate(invalid="ignore", divide="ignore"):
        chance = np.broadcast_to((m * v).sum(axis=-1, keepdims=True) / m.sum(axis=-1, keepdims=True), degrees.shape)
        return Days(*map(np.nan_to_num, (beyond / weight, products / weights, degrees, chance)))


def _spread(sums: Any) -> Any:
    n, m, m2, my, my2, mv, m2v, pair, both, product = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nan_to_num(my / m)
        share = np.where(m > 0, 1 / m, 0.0)
    beyond = my2 - mean * my - (mv - share * m2v)
    return np.stack([np.maximum(n - 1, 0), beyond, m - share * m2, product - mean * both + mean**2 * pair, pair])
