"""How good answers were, once their labels are known. Pure: arrays in, numbers out.

AUC is the Mann-Whitney statistic with mid-ranks for ties; its standard error is that of DeLong, DeLong and
Clarke-Pearson, "Comparing the areas under two or more correlated ROC curves", Biometrics 44 (1988).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence


def auc(scores: Sequence[float] | npt.NDArray[np.float64], labels: Sequence[int] | npt.NDArray[np.int64]) -> float:
    """Return the probability that a positive scores above a negative, ties counting half.

    ``scores`` and ``labels`` are of shape (n,), labels 0 or 1. NaN when one class is missing.
    """
    values, inverse, counts = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True, return_counts=True)
    positive = np.asarray(labels) > 0
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives or np.isnan(values).any():
        return math.nan
    # The mid-rank of a group of ties is the mean of the ranks it takes.
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def auc_error(
    scores: Sequence[float] | npt.NDArray[np.float64], labels: Sequence[int] | npt.NDArray[np.int64]
) -> float:
    """Return the standard error of ``auc`` by DeLong's placements; NaN with fewer than two of a class."""
    values, positive = np.asarray(scores, dtype=np.float64), np.asarray(labels) > 0
    above, below = values[positive], values[~positive]
    if min(len(above), len(below)) < 2 or np.isnan(values).any():
        return math.nan
    placements = [_share_below(above, below), _share_below(-below, -above)]
    return math.sqrt(sum(float(np.var(p, ddof=1)) / len(p) for p in placements))


def log_loss(probabilities: Sequence[float] | npt.NDArray[np.float64], labels: Sequence[int]) -> float:
    """Return the mean negative log likelihood in nats, probabilities clipped to [1e-7, 1 - 1e-7]."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64), 1e-7, 1 - 1e-7)
    y = np.asarray(labels, dtype=np.float64)
    return float(-(y * np.log(p) + (1 - y) * np.log1p(-p)).mean())


def _share_below(values: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return for each value the share of ``others`` below it, equal ones counting half."""
    ordered = np.sort(others)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / (2 * len(others))
