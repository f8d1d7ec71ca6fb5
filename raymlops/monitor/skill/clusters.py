"""Means over requests, with what chance alone makes of them. Pure: arrays in, numbers out.

Rows of one request go wrong together, so chance draws requests, not rows: a request is one cluster. A quality is a
ratio of two sums over clusters, losses S by weights m (rows, by how many requests each of a sampled log stands for).
Its error follows from the residuals ``e = S - R m`` (linearisation: Cochran, "Sampling Techniques", 1977, ch. 6 and 9),
with two repairs for few or unlike clusters:

- The residuals are too small, since R is fitted to them. If rows of a cluster are wrong together, so that e varies as m
  does, ``sum(e^2)`` is short by the factor ``1 - 2 sum(m^3) / (sum(m^2) sum(m)) + sum(m^2) / sum(m)^2``, which is
  ``1 - 1/n`` for equal ones: Bell and McCaffrey, "Bias reduction in standard errors for linear regression with
  multi-stage samples", Survey Methodology 28 (2002). Its degrees of freedom are ``sum(m^2)^2 / sum(m^4) - 1`` if rows
  are wrong together and ``sum(m)^2 / sum(m^2) - 1`` if they are not; taken is the harmonic mean of both.
- Losses are skewed, and then the studentised mean T is skewed the other way. With k the skewness of the estimate,
  ``3 / (2 k) (exp(2 k T / 3) - 1) + k / 6`` is nearly Student's t: Hall, "On the removal of skewness by
  transformation", J. R. Stat. Soc. B 54 (1992), and in this form Fujioka and Maesono, "Higher order normalizing
  transformations of asymptotic U-statistics", J. Stat. Plan. Inference 83 (2000). Its inverse is in closed form, so
  nothing is drawn: the same rows have the same interval, and 500 looks cost as little as one. The skewness of a sample
  is chance too; it is shrunk by ``n / (n + 4)``, a number that was measured.

What is kept of a window is eleven sums of powers. They add, so that any windows that follow each other are one.

Losses that are all equal show no spread, and may differ all the same: a model that errs on nine of ten answers errs on
the first 40 with 1.5%. Where their range is known, n equal losses v are as rare, if their mean is a, as n losses in a
row of which each is v with the largest probability that a mean of a allows: (a - least) / (v - least).

What it does not see: requests that depend on each other. Where rows of a day share their fate, days are the clusters;
give any number for what chance draws as one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import special

if TYPE_CHECKING:
    from collections.abc import Callable

Floats = npt.NDArray[np.float64]

FEWEST = 40
"""Clusters below which nothing is judged, counted as ``Estimate.effective`` counts them."""
_POWERS = ((0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0))
"""Of S and m, as they are kept."""


@dataclass(frozen=True)
class Moments:
    """Sums over clusters, of shape (..., 11): how many there are, then of products of powers of S and m."""

    sums: Floats

    @classmethod
    def of(cls, totals: Any, weights: Any = None) -> Moments:
        """Sum up clusters: their ``totals`` and ``weights`` of shape (..., clusters); without weights each is 1."""
        s = np.asarray(totals, dtype=np.float64)
        m = np.ones_like(s) if weights is None else np.asarray(weights, dtype=np.float64)
        return cls(np.stack([(s**i * m**j).sum(axis=-1) for i, j in _POWERS], axis=-1))

    @classmethod
    def none(cls) -> Moments:
        """Return those of no cluster."""
        return cls(np.zeros(len(_POWERS)))

    def __add__(self, other: Moments) -> Moments:
        """Return those of both; a cluster in both counts as two, so give the parts of a window by whole clusters."""
        return Moments(self.sums + other.sums)

    def less(self, rate: Any) -> Moments:
        """Return those of ``S - rate m``: of what is beyond a rate that each unit of weight is allowed."""
        n, m, m2, m3, m4, s, sm, sm2, s2, s2m, s3 = np.moveaxis(self.sums, -1, 0)
        first = s - rate * m, sm - rate * m2, sm2 - rate * m3
        second = s2 - 2 * rate * sm + rate**2 * m2, s2m - 2 * rate * sm2 + rate**2 * m3
        third = s3 - 3 * rate * s2m + 3 * rate**2 * sm2 - rate**3 * m3
        return Moments(np.stack([n, m, m2, m3, m4, *first, *second, third], axis=-1))

    @property
    def clusters(self) -> Any:
        """Return how many there are."""
        return self.sums[..., 0]

    @property
    def squares(self) -> Any:
        """Return the sum of the squares of S."""
        return self.sums[..., 8]

    @property
    def few(self) -> str:
        """Say that clusters are too few to be judged; empty where they are enough."""
        count, worth = int(self.sums[0]), float(np.nan_to_num(self.estimate().effective))
        if worth >= FEWEST:
            return ""
        told = "," if round(worth) == count else f", worth {worth:.0f} of one size,"
        return f"{count:,} labelled requests{told} and {FEWEST} are needed"

    def estimate(self) -> Estimate:
        """Return the ratio of the sums, with its error; NaN without clusters."""
        n, m, m2, m3, m4, s, sm, sm2, s2, s2m, s3 = np.moveaxis(self.sums, -1, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = s / m
            short = 1 - 2 * m3 / (m2 * m) + m2 / m**2
            squares = np.maximum(s2 - 2 * ratio * sm + ratio**2 * m2, 0.0)
            cubes = s3 - 3 * ratio * s2m + 3 * ratio**2 * sm2 - ratio**3 * m3
            # Rounding of sums of squares is no spread.
            squares = np.where(squares <= 1e-12 * np.abs(s2), 0.0, squares)
            variance = np.where(short > 1e-9, squares / short, np.nan) / m**2
            third = np.where(n > 2, cubes * n**3 / np.maximum((n - 1) * (n - 2) * (n + 4), 1), 0.0) / m**3
            together, apart = m2**2 / m4 - 1, m**2 / m2 - 1
            return Estimate(ratio, variance, third, 2 / (1 / together + 1 / apart), m**2 / m2)


@dataclass(frozen=True)
class Estimate:
    """A number and how chance spreads it; each field a number, or an array of many estimates.

    Attributes:
        value: The number.
        variance: Of it.
        third: Its third central moment; 0 to take it as symmetric.
        degrees: Of freedom of the variance.
        effective: Clusters of equal weight that those it rests on are worth (Kish).
        least: What no cluster's part is below; infinite where that is not known.
        most: What none is above.
    """

    value: Any
    variance: Any
    third: Any
    degrees: Any
    effective: Any
    least: Any = -math.inf
    most: Any = math.inf

    @property
    def error(self) -> Any:
        """Return the standard error."""
        return np.sqrt(self.variance)

    def minus(self, other: Estimate) -> Estimate:
        """Return the difference to an estimate from other clusters; degrees of freedom by Welch and Satterthwaite."""
        both = self.variance + other.variance
        with np.errstate(divide="ignore", invalid="ignore"):
            degrees = both**2 / (self.variance**2 / self.degrees + other.variance**2 / other.degrees)
        fewest = np.minimum(self.effective, other.effective)
        return Estimate(self.value - other.value, both, self.third - other.third, degrees, fewest)

    def interval(self, level: float = 0.05) -> tuple[Any, Any]:
        """Return the bounds outside of which it is with probability ``level``, looked at once."""
        reach = special.stdtrit(np.maximum(self.degrees, 1.0), 1 - level / 2)
        return self.value - self._unskewed(reach), self.value - self._unskewed(-reach)

    def bounds(self, z: Any) -> tuple[Any, Any]:
        """Return between what it lies if its score ``z`` is at most ``z`` on either side."""
        reach = _t_of_normal(z, self.degrees)
        low, high = self.value - self._unskewed(reach), self.value - self._unskewed(-reach)
        # Of equal ones, the mean under which a row of them is as rare as this score.
        share = np.exp(special.log_ndtr(-np.asarray(z)) / np.maximum(self.effective, 1.0))
        return self._of_equal(low, self.least, share), self._of_equal(high, self.most, share)

    def z(self, against: Any = 0.0) -> Any:
        """Return the standard normal score of the distance to a number.

        Where nothing spreads it, that of so many equal ones in a row; 0 where their range is not known.
        """
        error, skew = self.error, self._skew
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            t = np.where(error > 0, (self.value - against) / error, 0.0)
            bent = np.where(np.abs(skew) > _STRAIGHT, 1.5 * np.expm1(2 * skew * t / 3) / skew + skew / 6, t)
        return np.where(error == 0, self._equal_z(against), _normal_of_t(bent, self.degrees))[()]

    def _equal_z(self, against: Any) -> Any:
        beyond = np.asarray(self.value - against)
        end = np.where(beyond > 0, self.least, self.most)
        with np.errstate(divide="ignore", invalid="ignore"):
            chance = np.where(np.isfinite(end) & (beyond != 0), (against - end) / (self.value - end), 1.0)
            rare = self.effective * np.log(np.clip(chance, 1e-300, 1.0))
        return np.sign(beyond) * np.maximum(-special.ndtri_exp(np.minimum(rare, 0.0)), 0.0)

    def _of_equal(self, bound: Any, end: Any, share: Any) -> Any:
        known = (self.variance == 0) & np.isfinite(end)
        with np.errstate(invalid="ignore"):
            return np.where(known, end + (self.value - end) * share, bound)[()]

    @property
    def _skew(self) -> Any:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.variance > 0, self.third / self.variance**1.5, 0.0)

    def _unskewed(self, reach: Any) -> Any:
        """Return the distance from the value to the bound at this quantile of Student's t."""
        skew = self._skew
        with np.errstate(divide="ignore", invalid="ignore"):
            # Beyond what the transformation reaches, the bound is infinite: as of a single loss among many zeros.
            bent = 1.5 * np.log(np.maximum(1 + 2 * skew / 3 * (reach - skew / 6), 0.0)) / skew
        return self.error * np.where(np.abs(skew) > _STRAIGHT, bent, reach)


_STRAIGHT = 1e-6
"""A skewness below is none: the transformation would divide by it."""


def by_cluster(clusters: Any, values: Any, weights: Any = None) -> tuple[Floats, Floats]:
    """Return totals of shape (clusters, ...) and weights of shape (clusters,) of rows, in the order of the ids.

    ``clusters`` says of what cluster each row is, ``values`` are of shape (rows, ...).
    """
    _, place = np.unique(np.asarray(clusters), return_inverse=True)
    rows = np.asarray(values, dtype=np.float64)
    m = np.ones(len(rows)) if weights is None else np.asarray(weights, dtype=np.float64)
    count = int(place.max(initial=-1)) + 1
    totals = np.zeros((count, *rows.shape[1:]))
    np.add.at(totals, place, rows * m.reshape(-1, *[1] * (rows.ndim - 1)))
    return totals, np.bincount(place, m, minlength=count).astype(np.float64)


def pseudo_values(totals: Floats, value: Callable[[Floats], Any]) -> Floats:
    """Return what each cluster adds to any smooth function of sums, so that their mean has the function's error.

    ``totals`` are of shape (clusters, ...); ``value`` takes sums of shape (many, ...) and returns (many,). Those are
    ``n f(all) - (n - 1) f(all but one)``: Tukey's jackknife (Miller, "The jackknife: a review", Biometrika 61, 1974).
    """
    n, everything = len(totals), totals.sum(axis=0)
    without = np.asarray(value(everything - totals), dtype=np.float64)
    whole = np.asarray(value(everything[None]), dtype=np.float64)
    return n * whole - (n - 1) * without


def _normal_of_t(t: Any, degrees: Any) -> Any:
    """Return the normal score with the tail of Student's t."""
    beyond = special.stdtr(np.maximum(degrees, 1.0), -np.abs(t))
    return np.sign(t) * -special.ndtri(np.maximum(beyond, 1e-300))


def _t_of_normal(z: Any, degrees: Any) -> Any:
    """Return Student's t with the tail of a normal score."""
    return -special.stdtrit(np.maximum(degrees, 1.0), special.ndtr(-np.asarray(z)))
