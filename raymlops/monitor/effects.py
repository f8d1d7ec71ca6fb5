"""How much a column changed, in words that people use: distance, quantiles, categories that came or went. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_EXPECTED = 10
"""Rows that a category would have had in a window where it has none: chance leaves it out once in 22,000 windows."""


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
    finite = np.where(np.isfinite(edges), edges, np.where(edges < 0, edges[1], edges[-2]))
    running = np.concatenate([[0.0], np.cumsum(counts)]) / counts.sum()
    found = []
    for share in at:
        bin_ = int(np.clip(np.searchsorted(running, share, "left") - 1, 0, len(counts) - 1))
        part = (share - running[bin_]) / (running[bin_ + 1] - running[bin_])
        found.append(float(finite[bin_] + part * (finite[bin_ + 1] - finite[bin_])))
    return tuple(found)


def new_bins(before: Counts, after: Counts) -> tuple[int, ...]:
    """Return the bins that hold rows now and held none in the reference."""
    return tuple(int(at) for at in np.flatnonzero((before == 0) & (after > 0)))


def vanished_bins(before: Counts, after: Counts) -> tuple[int, ...]:
    """Return the bins that hold no rows now, where the reference lets expect at least 10."""
    expected = before / max(int(before.sum()), 1) * int(after.sum())
    return tuple(int(at) for at in np.flatnonzero((after == 0) & (expected >= _EXPECTED)))
