"""How much of what a champion gains over a blind predictor a canary loses, on requests given by chance. Pure.

The gain of a request is the loss of one who knows nothing of its rows, less the loss of its answer. A blind predictor
depends on labels alone, which no version has chosen: two versions that are alike have the same mean gain. The mean of
losses itself says as much, but varies more: where one request of a hundred has the event, most of its spread is whether
the event comes, which both lose alike.

At a step let the canary have n_a requests with the mean gain a, the champion n_b with b, and k be the part of the
champion's gain that is to be kept. The difference ``k b - a``, whose variance is Welch's, says about as much as
``4 n_a n_b / (n_a + n_b)`` requests would of which each version had half. Steps are weighted by that number, so that it
does not matter that their hours differ, and the sum may be looked at as often as one likes (``sequence``). For k = 1 it
is what is lost; for k = 1 - m it is at most 0 where no more than the part m of the champion's gain is lost.

What decides may be rare, and not have come to the smaller side yet. So at each step both versions have one request
more, with the most unfavourable gain that was seen of either: for harm, the canary's is the best and the champion's
the worst; for a canary that is to pass, the other way round. Intervals of rare events need such pseudo-observations:
Agresti and Coull, "Approximate is better than 'exact' for interval estimation of binomial proportions", Am. Stat. 52
(1998). Nothing is said below 40 requests of each. Error rates: ``tests/benchmarks/canary_simulation.py --part events``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.monitor.skill.clusters import FEWEST, Estimate
from raymlops.monitor.skill.sequence import log_evidence

if TYPE_CHECKING:
    from collections.abc import Sequence

_HALVINGS = 14
"""Of the parts looked at: a bound is too wide by at most 0.0004."""


def log_harm(steps: Sequence[tuple[Any, Any]], *, extremes: tuple[Any, Any]) -> Any:
    """Return the logarithm of the evidence that a canary gains less than the champion.

    ``steps`` are sums of the powers 0 to 2 of the canary's and of the champion's gains, (..., 3) for many rollouts,
    ``extremes`` the least and the largest gain of both. If the canary gains as much, it ever exceeds ``-log(level)``
    with probability at most ``level``.
    """
    least, largest = extremes
    return _log_evidence(steps, 1.0, ends=(largest, least))


def log_kept(steps: Sequence[tuple[Any, Any]], *, margin: float, extremes: tuple[Any, Any]) -> Any:
    """Return the logarithm of the evidence that at most the part ``margin`` of the champion's gain is lost."""
    least, largest = extremes
    return _log_evidence(steps, 1 - margin, ends=(least, largest if margin <= 1 else least), sign=-1.0)


def part_lost_at_most(
    steps: Sequence[tuple[Any, Any]], *, extremes: tuple[float, float], log_limit: float
) -> float | None:
    """Return the smallest part of the champion's gain of which it is sure that no more is lost; None: of no part.

    It is looked for from -3, a gain that is four times the champion's, to 3.
    """

    def sure(part: float) -> bool:
        return bool(log_kept(steps, margin=part, extremes=extremes) >= log_limit)

    low, high = -3.0, 3.0
    if not sure(high):
        return None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if sure(middle) else (middle, high)
    return high


def _log_evidence(steps: Sequence[tuple[Any, Any]], keep: float, *, ends: tuple[Any, Any], sign: float = 1.0) -> Any:
    """Return that of ``sign`` times what is lost of the part ``keep`` of the champion's gain, with one more each."""
    canary, champion = (np.stack([np.asarray(step[side], dtype=np.float64) for step in steps]) for side in (0, 1))
    m, n = canary[..., 0], champion[..., 0]
    requests = 4 * m * n / np.maximum(m + n, 1.0)
    (a, a_variance), (b, b_variance) = _mean(canary, ends[0]), _mean(champion, ends[1])
    total = np.maximum(requests.sum(axis=0), 1.0)
    value = (requests * (keep * b - a)).sum(axis=0) / total
    variance = (requests**2 * (keep**2 * b_variance + a_variance)).sum(axis=0) / total**2
    fewest = np.minimum(m, n).sum(axis=0)
    found = Estimate(sign * value, variance, 0.0, np.maximum(fewest - 1, 1.0), total)
    return np.where(fewest >= FEWEST, log_evidence(found.z(), total), 0.0)[()]


def _mean(sums: Any, end: Any) -> tuple[Any, Any]:
    """Return the mean and its variance, of so many numbers by the sums of their powers and of ``end``."""
    count, first, squares = np.moveaxis(sums, -1, 0)
    mean = (first + end) / (count + 1)
    return mean, np.maximum(squares + end**2 - (count + 1) * mean**2, 0.0) / np.maximum(count, 1.0) / (count + 1)
