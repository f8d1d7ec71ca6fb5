"""Whether a version's answers agree with its metrics. Pure.

Metrics are computed from the model's output beside its labels, answers by ``predict`` and ``decode``: an inverted
probability, classes in another order, logarithms in place of prices or a constant leave every metric as it is. Both
know something of the labels, or neither. So both are asked about the same rows, with their labels and with the same
labels in random orders (a permutation test): where the metric is far from what random orders give, and the answers fit
the labels of other rows as well as their own, callers do not get what was measured.

How well answers are calibrated does not matter: over random orders their mean loss varies by how they follow the
labels alone. Classes without probabilities may all be the same, of a good model of rare events, so that they must only
not be worse than chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from raymlops.records import GateCheck

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = "answers agree with metrics"
SURE = 6.0
"""Standard deviations from chance from which on a metric knows the labels."""
FOLLOWS = 2.0
"""Standard deviations from chance that answers then have at least."""
ANTI = -3.0
"""And at least where they are classes alone."""


@dataclass(frozen=True)
class Orders:
    """A number for rows with their labels, and for the same rows with their labels in random orders."""

    own: float
    random: Sequence[float]
    mode: Literal["min", "max"]

    @property
    def skill(self) -> float:
        """Return by how many standard deviations of the random orders the own one is better; NaN if unknown."""
        values = np.asarray([self.own, *self.random], dtype=np.float64)
        if len(values) < 3 or not np.isfinite(values).all():
            return math.nan
        better = (values[0] - values[1:].mean()) * (1 if self.mode == "max" else -1)
        if abs(better) <= 1e-9 * max(1.0, abs(values[0])):  # rounding
            return 0.0
        spread = float(values[1:].std(ddof=1))
        return float(better / spread) if spread else math.copysign(math.inf, better)


def unanswered(reason: str) -> GateCheck:
    """Return the check of a version that does not answer some of the test rows."""
    return GateCheck(NAME, passed=False, got=None, allowed="an answer to each test row", detail=reason)


def agrees(metric: str, measured: Orders, losses: Orders, *, classes_alone: bool, rows: int) -> GateCheck:
    """Return whether answers follow the labels, as ``metric`` does; ``losses`` are the answers' mean losses."""
    known, followed = measured.skill, losses.skill
    least = ANTI if classes_alone else FOLLOWS
    passed = not (known >= SURE and followed < least)
    shuffled = float(np.mean(losses.random)) if len(losses.random) else math.nan
    otherwise = "if they are meant so, define loss_of() in the recipe or set gate.compare_answers: false"
    return GateCheck(
        name=NAME,
        passed=passed,
        got=followed if math.isfinite(followed) else None,
        allowed=f">= {least:g} standard deviations better than chance",
        detail=(
            f"on {rows:,} test rows {metric} is {measured.own:.4g}, {known:.3g} standard deviations above chance; "
            f"the answers' mean loss is {losses.own:.4g} with their own labels, {shuffled:.4g} with those of other rows"
            f"{'' if passed else f'; {otherwise}'}"
        ),
    )
