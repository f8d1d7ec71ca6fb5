"""Bounds and evidence of an estimate, for as many looks as one likes. Pure.

While clusters come in, the standard normal score z of their mean against its true value is about that of a Brownian
motion at the time t, counted in clusters. So for any spread of effects, here half a normal one with the variance
1 / tau of a cluster's,

    M = 2 / sqrt(1 + t / tau) exp(x^2 / 2) Phi(x)    with x = z sqrt(t / (t + tau))

is a nonnegative martingale that starts at 1, and by Ville's inequality ever reaches 1 / alpha with probability at most
alpha: Robbins (1970), and for means of anything with a variance Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas,
"Time-uniform central limit theory and asymptotic confidence sequences", Ann. Statist. 52 (2024), whose one-sided bound
this is. It needs no bound on losses, and follows means that change: what it bounds is the mean of those so far. For
losses in [0, 1] that stay, ``monitor.sequential`` has bounds that are exact; they are of counts of single losses, not
of ratios, clusters of many sizes or weights, which this takes.

It is asymptotic: nothing is said below ``FEWEST`` clusters, and scores are those of Student's t, without the skewness
(``clusters``). How often it misses is in ``tests/benchmarks/quality_simulation.py``.

**What became worse lately.** An average since the start is slow to show it. So the evidence is an average over all
windows at which it might have begun, of weights ``1 / (j (j + 1))``, which are 1 together: an average of martingales is
one, and a start that lies ahead counts as 1. A change at the 30th window must be 465 times as sure as one at the first,
which takes about twice as many labels at a level of 1%.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import special

from raymlops.monitor.skill.clusters import FEWEST, Estimate, Moments
from raymlops.monitor.skill.days import Days, days_of

TAU = 100.0
"""Clusters. Bounds are narrowest, beside those at one look, at about 12 times as many, where alpha is 1%."""

_DAY_DEGREES = 4.0
"""Of freedom of a day's part: one in some hundred is far off, as in a storm."""


def log_evidence(z: Any, clusters: Any) -> Any:
    """Return the logarithm of M by a score ``z`` of the mean of so many clusters."""
    time = np.asarray(clusters) / TAU
    x = np.asarray(z) * np.sqrt(time / (1 + time))
    return math.log(2) - 0.5 * np.log1p(time) + x * x / 2 + special.log_ndtr(x)


def score_bound(clusters: Any, *, alpha: float) -> Any:
    """Return the score that the mean of so many clusters ever exceeds with probability at most ``alpha``.

    ``Phi(x) >= 1 - exp(-x^2 / 2) / 2``, so that M is at least 1 / alpha where ``exp(x^2 / 2)`` is at least
    ``1 / 2 + sqrt(1 + t / tau) / (2 alpha)``.
    """
    time = np.asarray(clusters) / TAU
    return np.sqrt(2 * (1 + 1 / time) * np.log(0.5 + np.sqrt(1 + time) / (2 * alpha)))


def interval(estimate: Estimate, *, alpha: float = 0.05) -> tuple[Any, Any]:
    """Return bounds that ever fail with probability at most ``alpha``; infinite ones below ``FEWEST`` clusters."""
    few = ~(np.asarray(estimate.effective) >= FEWEST)
    low, high = estimate.bounds(score_bound(np.maximum(estimate.effective, 1.0), alpha=alpha / 2))
    return np.where(few, -np.inf, low)[()], np.where(few, np.inf, high)[()]


def log_evidence_since(windows: Moments, *, least: Any = -np.inf, known: Days | None = None) -> tuple[Any, Any]:
    """Return the logarithm of the evidence, at the last window, that the mean is above 0 since some window, and which.

    ``windows`` are at least one, in their order, of shape (..., windows, 11); which one is its number from 0. ``least``
    is what each window's mean is never below, for clusters that are all equal.
    """
    count = windows.sums.shape[-2]
    # The sums from window j to the last one.
    since = Moments(_from_each(windows.sums, axis=-2))
    weight = windows.sums[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        lowest = _from_each(np.where(weight > 0, weight * least, 0.0), axis=-1) / _from_each(weight, axis=-1)
    found = replace(since.estimate(), least=np.nan_to_num(lowest, nan=-np.inf))
    few = ~(found.effective >= FEWEST)
    if known is not None:
        days = days_of(windows) + known
        with np.errstate(divide="ignore", invalid="ignore"):
            number = np.nan_to_num(_from_each(weight, axis=-1) ** 2 / _from_each(weight**2, axis=-1))
        differ = days.of_mean(number)
        variance = found.variance + differ
        with np.errstate(divide="ignore", invalid="ignore"):
            tails = _DAY_DEGREES * np.maximum(number, 1.0) * (variance / differ) ** 2
        degrees = np.fmin(np.minimum(found.degrees, days.degrees), tails)
        found = replace(found, variance=variance, degrees=degrees)
        few |= days.degrees < 1
    with np.errstate(invalid="ignore"):
        grown = np.where(few, 0.0, log_evidence(found.z(), np.where(few, 1.0, found.effective)))
    starts = np.arange(1.0, count + 1)
    parts = grown - np.log(starts * (starts + 1))
    ahead = np.full((*parts.shape[:-1], 1), -math.log(count + 1))
    evidence = special.logsumexp(np.concatenate([parts, ahead], axis=-1), axis=-1)
    return evidence, parts.argmax(axis=-1)


def _from_each(values: Any, *, axis: int) -> Any:
    """Return the sums from each to the last one."""
    return np.flip(np.cumsum(np.flip(values, axis=axis), axis=axis), axis=axis)
