"""Variances of many contrasts, each from few windows, drawn towards what they have in common. Pure.

Smyth, "Linear models and empirical Bayes methods for assessing differential expression in microarray experiments",
Stat. Appl. Genet. Mol. Biol. 3 (2004), sections 3 and 6.2, as in limma's ``fitFDist`` and ``squeezeVar``. If the
variances of a kind are s0^2 d0 / chi-square(d0), and s^2 is seen with d degrees of freedom, then the best guess is
``(d0 s0^2 + d s^2) / (d0 + d)``, and a t statistic with it has d0 + d degrees of freedom. Both d0 and s0 follow from
mean and variance of ``log s^2``, less what d degrees of freedom alone explain: digamma and trigamma.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import digamma, polygamma

Floats = npt.NDArray[np.float64]

MAX_PRIOR = 1_000.0
"""Degrees of freedom of a prior at most: variances that differ by no more than chance explains."""
_FEWEST = 3
"""Variances of one kind, from which a prior can be told; fewer keep their own."""


def moderate(variances: Floats, degrees: float, kinds: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Return moderated variances and the degrees of freedom they have, both of the shape of ``variances``.

    Args:
        variances: Positive, of shape (..., contrasts). Each leading index has priors of its own.
        degrees: Of freedom of each of them.
        kinds: Of contrasts, of shape (contrasts,): those of one kind have one prior.
    """
    # Sums over a kind, and what is a kind's for each of its contrasts, are products with a matrix: many times as fast.
    member = (kinds[:, None] == np.unique(kinds)).astype(np.float64)
    number = member.sum(axis=0)
    logs = np.log(variances) + (np.log(degrees / 2) - digamma(degrees / 2))
    mean = logs @ member / number
    spread = np.maximum((logs * logs) @ member - number * mean * mean, 0.0) / np.maximum(number - 1, 1)
    prior, offset = _prior(spread - polygamma(1, degrees / 2))
    prior = np.where(number < _FEWEST, 0.0, prior)
    total = prior + degrees
    common, own = prior * np.exp(mean + offset) / total, degrees / total
    return common @ member.T + (own @ member.T) * variances, total @ member.T


def _prior(excess: Floats) -> tuple[Floats, Floats]:
    """Return d0 with ``trigamma(d0 / 2) = excess``, and ``digamma(d0 / 2) - log(d0 / 2)``."""
    keys, priors, offsets = _table()
    at = np.log(np.maximum(excess, np.exp(keys[0])))
    return np.interp(at, keys, priors), np.interp(at, keys, offsets)


@lru_cache(maxsize=1)
def _table() -> tuple[Floats, Floats, Floats]:
    """Return trigamma inverted once: interpolated between 2,000 points it is right to 1e-4, and 50 times as fast."""
    priors = np.geomspace(MAX_PRIOR, 1e-3, 2_000)
    return np.log(polygamma(1, priors / 2)), priors, digamma(priors / 2) - np.log(priors / 2)
