"""How much a column changed, in words that people use: distance, quantiles, categories that came or went. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_EXPECTED = 10
"""Rows that a category would have had in a window where it has none: chance leaves it out once in 22,000 windows."""
BARS = 24
"""Of a histogram of numbers; of one of categories, the last of half as many holds the others."""
_OUTER = (0.005, 0.995)
_REACH = 4.0
"""Interquartile ranges beyond the quartiles that a histogram shows: what is further out is in its outer bars."""


@dataclass(frozen=True)
class Histogram:
    """A column before and after, in few bars, each a share of the values that are not null.

    Attributes:
        edges: Of intervals of equal width, one more than bars, the outer bars with all that lies beyond; or empty.
        labels: Of categories, the commonest first; or empty.
        before: Of the reference.
        after: Of the window.
    """

    edges: tuple[float, ...]
    labels: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]


def jensen_shannon(before: Counts, after: Counts) -> float:
    """Return the Jensen-Shannon distance of two histograms on the same bins, from 0 to 1.

    The root of the divergence to base 2: Lin, "Divergence measures based on the Shannon entropy", IEEE Trans. Inf.
    Theory 37 (1991); that its root is a metric: Endres and Schindelin (2003). 0 where one of them is empty.
    """
    if not before.sum() or not after.sum():
        return 0.0
    p, q = before / before.sum(), after / after.sum()
    middle = (p + q) / 2

    def divergence(shares: Floats) -> float:
        held = shares > 0
        return float((shares[held] * np.log2(shares[held] / middle[held])).sum())

    return float(np.sqrt(max(divergence(p) + divergence(q), 0.0) / 2))


def quantiles(counts: Counts, edges: Floats, *, at: tuple[float, ...] = QUANTILES) -> tuple[float, ...]:
    """Return quantiles of a histogram, values spread evenly within a bin; NaN where it is empty.

    ``edges`` has one number more than ``counts``. Where an outer edge is infinite its bin counts as its finite edge.
    """
    if not counts.sum():
        return (float("nan"),) * len(at)
    finite, running = _finite(edges), _running(counts)
    found = []
    for share in at:
        bin_ = int(np.clip(np.searchsorted(running, share, "left") - 1, 0, len(counts) - 1))
        part = (share - running[bin_]) / (running[bin_ + 1] - running[bin_])
        found.append(float(finite[bin_] + part * (finite[bin_ + 1] - finite[bin_])))
    return tuple(found)


def grouped(before: Counts, after: Counts, *, groups: int, ordered: bool) -> tuple[Counts, Counts]:
    """Return two histograms on fewer bins, each of which holds about one of so many ``groups`` of the rows of both.

    Of ordered ones neighbours are put together; of others those that are too small, all in one. Histograms of a few
    rows on many bins are far apart by chance alone.
    """
    both = before + after
    if ordered:
        place = (np.cumsum(both) - both) * groups // max(int(both.sum()), 1)
    else:
        place = np.where(both * groups >= both.sum(), np.arange(len(both)), len(both))
    number = int(place.max(initial=0)) + 1
    found = (np.bincount(place, weights=side, minlength=number).astype(np.int64) for side in (before, after))
    return next(found), next(found)


def range_of(counts: Counts, edges: Floats) -> tuple[float, float]:
    """Return where 98% of the values lie: from their 1% quantile to their 99%; ``edges`` are as for ``quantiles``."""
    low, high = quantiles(counts, edges, at=(0.01, 0.99))
    return low, high


def share_outside(counts: Counts, edges: Floats, low: float, high: float) -> float:
    """Return the share of values below ``low`` or above ``high``; 0 of none."""
    if not counts.sum():
        return 0.0
    below, above = np.interp([low, high], _finite(edges), _running(counts))
    return float(below + 1 - above)


def displacement(before: Counts, after: Counts, edges: Floats) -> float:
    """Return by how much values are displaced on average, without the outer one in 1,000 on either side.

    That is Wasserstein's distance of both distributions: the mean difference of their quantiles, here of 999. 0 where
    one of them is empty.
    """
    if not before.sum() or not after.sum():
        return 0.0
    at = tuple(np.arange(1, 1000) / 1000)
    return float(np.abs(np.subtract(quantiles(before, edges, at=at), quantiles(after, edges, at=at))).mean())


def outside(counts: Counts, edges: Floats) -> tuple[float, float]:
    """Return the shares of the values in outer bins that have no end: below the lowest finite edge, above the highest.

    They are 0 where the histogram is empty.
    """
    shares = counts[[0, -1]] / max(int(counts.sum()), 1) * np.isinf(edges[[0, -1]])
    return float(shares[0]), float(shares[1])


def known(found: tuple[float, ...], beyond: tuple[float, float]) -> tuple[float, ...]:
    """Return the quantiles at ``QUANTILES``, NaN where one is beyond the edges: nothing is known of how far."""
    below, above = beyond
    return tuple(
        float("nan") if (below and share <= below) or (above and share > 1 - above) else value
        for share, value in zip(QUANTILES, found, strict=True)
    )


def in_words(found: Sequence[float | None], span: Sequence[float], beyond: Sequence[float]) -> tuple[str, ...]:
    """Return the quantiles at ``QUANTILES`` as they are shown: ``below 57`` where nothing more is known of one.

    ``span`` is from the lowest finite edge to the highest, ``beyond`` the shares outside of it; both may be empty.
    """
    words = []
    for share, value in zip(QUANTILES, found, strict=True):
        if value is not None and np.isfinite(value):
            words.append(f"{value:.4g}")
        elif not any(beyond):
            words.append("none")
        else:
            words.append(f"below {span[0]:.4g}" if share <= beyond[0] else f"above {span[1]:.4g}")
    return tuple(words)


def new_bins(before: Counts, after: Counts) -> tuple[int, ...]:
    """Return the bins that hold rows now and held none in the reference."""
    return tuple(int(at) for at in np.flatnonzero((before == 0) & (after > 0)))


def vanished_bins(before: Counts, after: Counts) -> tuple[int, ...]:
    """Return the bins that hold no rows now, where the reference lets expect at least 10."""
    expected = before / max(int(before.sum()), 1) * int(after.sum())
    return tuple(int(at) for at in np.flatnonzero((after == 0) & (expected >= _EXPECTED)))


def histogram(before: Counts, after: Counts, edges: Floats) -> Histogram | None:
    """Return few bars of two histograms on the same bins, values spread evenly within a bin; None where one is empty.

    Shown is what lies within 4 interquartile ranges of the quartiles of either, so that one value far off leaves more
    than one bar.
    """
    if not before.sum() or not after.sum():
        return None
    lows, highs = [], []
    for counts in (before, after):
        low, first, third, high = quantiles(counts, edges, at=(_OUTER[0], 0.25, 0.75, _OUTER[1]))
        reach = _REACH * (third - first) or np.inf
        lows.append(max(low, first - reach))
        highs.append(min(high, third + reach))
    bounds = np.linspace(min(lows), max(highs), BARS + 1)
    if not bounds[0] < bounds[-1]:
        return None
    shares = []
    for counts in (before, after):
        running = np.interp(bounds, _finite(edges), _running(counts))
        running[0], running[-1] = 0.0, 1.0
        shares.append(_rounded(np.diff(running)))
    return Histogram(tuple(float(f"{bound:.6g}") for bound in bounds), (), *shares)


def seldom(counts: Counts, edges: Floats | None, bins: Sequence[int]) -> str:
    """Return which values of some bins that the reference hardly has any in are told of: where most of them are now."""
    if edges is None:
        return "that training hardly has"
    most = max(bins, key=lambda at: int(counts[at]))
    low, high = edges[most], edges[most + 1]
    where = f"below {high:g}" if np.isneginf(low) else f"above {low:g}" if np.isinf(high) else f"{low:g} to {high:g}"
    return f"{where}, which training hardly has"


def category_shares(before: Counts, after: Counts, labels: tuple[str, ...]) -> Histogram | None:
    """Return the shares of the commonest categories before or after, and of all others; None where one is empty."""
    if not before.sum() or not after.sum():
        return None
    both = np.stack([before / before.sum(), after / after.sum()])
    order = np.argsort(-both.max(axis=0), kind="stable")
    order = order[both.max(axis=0)[order] > 0]
    shown, others = (order, order[:0]) if len(order) <= BARS // 2 else np.split(order, [BARS // 2 - 1])
    names = tuple(labels[at] for at in shown)
    if len(others):
        both = np.hstack([both[:, shown], both[:, others].sum(axis=1, keepdims=True)])
        return Histogram((), (*names, f"{len(others)} others"), *(_rounded(shares) for shares in both))
    return Histogram((), names, *(_rounded(shares) for shares in both[:, shown]))


def _finite(edges: Floats) -> Floats:
    """Return edges where outer ones that are infinite are the next one inwards."""
    return np.asarray(np.where(np.isfinite(edges), edges, np.where(edges < 0, edges[1], edges[-2])))


def _running(counts: Counts) -> Floats:
    return np.asarray(np.concatenate([[0.0], np.cumsum(counts)]) / counts.sum())


def _rounded(shares: Floats) -> tuple[float, ...]:
    return tuple(round(float(share), 4) for share in shares)
