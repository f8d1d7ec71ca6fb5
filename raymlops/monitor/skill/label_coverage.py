"""How many requests have labels, how late these come, and whether the labelled ones are like the others. Pure.

**By age.** A request of yesterday cannot yet show a label that takes a week. So the share that is labelled by an age is
the product-limit estimate over all requests, each seen up to its own age: Kaplan and Meier, "Nonparametric estimation
from incomplete observations", JASA 53 (1958).

**Labelled against unlabelled.** Within strata of one age, where both have had the same time, answers are ranked, and
requests with a label are compared with those without, weighted as van Elteren's stratified Wilcoxon test weights strata
(1960): in two contrasts of the ranks u, location ``sqrt(12) (u - 1/2)`` and spread ``sqrt(5) (6 u^2 - 6 u + 1)``, which
are uncorrelated and of variance 1 (Neyman's smooth test of order 2, 1937). They differ where a contrast differs
significantly after Holm, by request, and by at least ``FLOOR``: of many requests chance explains no difference at all,
and not every difference matters. What it cannot see: labels that depend on what they say and not on the answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from raymlops.monitor.outcome import holm
from raymlops.monitor.skill.clusters import FEWEST, Floats, Moments, by_cluster

LEVEL = 0.01
"""Of one window in which labelled and unlabelled answers are alike, to be told apart."""
FLOOR = 0.2
"""Standard deviations of ranks. In location: a labelled answer is above an unlabelled one with a chance of .56."""
QUANTILES = (0.5, 0.9)


@dataclass(frozen=True)
class Coverage:
    """How many requests have a label, by their age.

    Attributes:
        requests: All of them, as many as they stand for.
        labelled: Those with a label by now.
        ages_s: Ages in seconds.
        shares: Of requests that are labelled by each age; NaN where none is so old.
        lags_s: Seconds by which half, and 90%, of the labels that ever come have come; NaN without labels.
    """

    requests: float
    labelled: float
    ages_s: tuple[float, ...]
    shares: tuple[float, ...]
    lags_s: tuple[float, ...]


def coverage(asked: Any, labelled: Any, *, now: float, ages_s: tuple[float, ...], weights: Any = None) -> Coverage:
    """Return the coverage of requests.

    ``asked`` is when each came, ``labelled`` when its first label did, NaN for none; seconds. Labels after ``now`` are
    none yet, those before their request are of the lag 0.
    """
    begun, first = np.asarray(asked, dtype=np.float64), np.asarray(labelled, dtype=np.float64)
    w = np.ones(len(begun)) if weights is None else np.asarray(weights, dtype=np.float64)
    has = first <= now
    seen = np.where(has, np.maximum(first - begun, 0.0), now - begun)
    order = np.lexsort((~has, seen))  # a label at an age comes before those that are no older
    seen, has, w = seen[order], has[order], w[order]
    at_risk = np.cumsum(w[::-1])[::-1]
    # All labels of one age leave the same number at risk.
    ages, first_of = np.unique(seen, return_index=True)
    left = np.add.reduceat(np.where(has, w, 0.0), first_of) / at_risk[first_of] if len(seen) else np.empty(0)
    share: Floats = np.asarray(1 - np.cumprod(1 - left), dtype=np.float64)
    oldest = float(now - begun.min()) if len(begun) else -math.inf
    shares = tuple(_step(ages, share, age) if age <= oldest else math.nan for age in ages_s)
    ever = float(share[-1]) if len(share) else 0.0
    lags = tuple(float(ages[np.searchsorted(share, q * ever - 1e-12)]) if ever else math.nan for q in QUANTILES)
    return Coverage(float(w.sum()), float(w[has].sum()), ages_s, shares, lags)


def _step(ages: Floats, share: Floats, age: float) -> float:
    at = int(np.searchsorted(ages, age, "right"))
    return float(share[at - 1]) if at else 0.0


@dataclass(frozen=True)
class Selection:
    """How answers of labelled requests differ from those of unlabelled ones of the same age.

    Attributes:
        location: In standard deviations of ranks, labelled less unlabelled.
        spread: Likewise, of how far ranks are from the middle.
        p: The smaller p-value of both, after Holm; 1 where nothing can be compared.
        differs: Whether no verdict should rest on these labels.
        reason: Why, or why not, in one sentence.
    """

    location: float
    spread: float
    p: float
    differs: bool
    reason: str


def selection(
    scores: Any, labelled: Any, *, ages: Any, clusters: Any, weights: Any = None, level: float = LEVEL
) -> Selection:
    """Compare the answers of rows: a number each, whether it has a label, its stratum of age and its request."""
    has = np.asarray(labelled, dtype=np.bool_)
    w = np.ones(len(has)) if weights is None else np.asarray(weights, dtype=np.float64)
    _, strata = np.unique(np.asarray(ages), return_inverse=True)
    whole = np.bincount(strata, w)
    part = (np.bincount(strata, w * has, minlength=len(whole)) / whole)[strata] if len(whole) else np.empty(0)
    both = (part > 0) & (part < 1)
    few = min((len(np.unique(np.asarray(clusters)[both & side])) for side in (has, ~has)), default=0)
    if few < FEWEST:
        told = f"{few} requests with or without a label at the same age, and {FEWEST} of each are compared"
        return Selection(0.0, 0.0, 1.0, differs=False, reason=told)
    ranks = _ranks(np.asarray(scores, dtype=np.float64), strata, w)
    contrasts = np.stack([math.sqrt(12) * (ranks - 0.5), math.sqrt(5) * (6 * ranks**2 - 6 * ranks + 1)], axis=1)
    # The mean difference within strata is a ratio of two sums: a stratum of one side alone adds to neither.
    totals, _ = by_cluster(clusters, contrasts * (has - part)[:, None], w)
    sizes, _ = by_cluster(clusters, part * (1 - part), w)
    found = Moments.of(totals.T, sizes).estimate()
    p = holm(2 * special.ndtr(-np.abs(found.z())))
    location, spread = found.value.tolist()
    apart = (p <= level) & (np.abs(found.value) >= FLOOR)
    told = f"location {location:+.2f}, spread {spread:+.2f} standard deviations of ranks (p {p.min():.2g})"
    if apart.any():
        reason = f"labelled answers are unlike unlabelled ones of the same age: {told}, and {FLOOR:g} is allowed"
    else:
        reason = f"labelled answers are like unlabelled ones of the same age: {told}"
    return Selection(location, spread, float(p.min()), bool(apart.any()), reason)


def _ranks(scores: Floats, strata: Any, weights: Floats) -> Floats:
    """Return the rank of each row within its stratum, from 0 to 1, ties in the middle."""
    order = np.lexsort((scores, strata))
    s, of, w = scores[order], strata[order], weights[order]
    new = np.append(True, (np.diff(of) > 0) | (s[1:] != s[:-1]))
    groups = np.cumsum(new) - 1
    mass = np.bincount(groups, w)
    below = np.cumsum(mass) - mass / 2
    stratum = of[new]
    whole = np.bincount(stratum, mass)
    start = np.cumsum(whole) - whole
    ranks = np.empty(len(scores))
    ranks[order] = ((below - start[stratum]) / whole[stratum])[groups]
    return ranks
