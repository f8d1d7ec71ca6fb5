"""How much of what a champion gains over a blind predictor a canary loses, on requests given by chance. Pure.

The gain of a request is the loss of one who knows nothing of its rows, less the loss of its answer. A blind predictor
depends on labels alone, which no version has chosen: two versions that are alike have the same mean gain. The mean of
losses itself says as much, but varies more: where one request of a hundred has the event, most of its spread is whether
the event comes, which both lose alike.

At a step, let n requests be n_a of the canary with gains a, n_b of the champion with gains b, and k the part of the
champion's gain that is to be kept. With any c, the n numbers

    (n / n_a) (c - a)  of the canary's requests,    (n / n_b) (k b - c)  of the champion's

have the mean ``k mean(b) - mean(a)``, whatever hour it is and whatever share each version has. They add over steps. By
the c that is used here their spread is that of the difference of both means (Welch). For k = 1 the mean is what is
lost; for k = 1 - m it is at most 0 where no more than the part m of the champion's gain is lost.

They may be looked at as often as one likes (``sequence``), with the two provisos of ``verdict.Paired``, since what
decides may be rare: at least 40 requests carry the difference, and there may be requests of a kind that none of the
smaller side's were, up to the share that so many would have missed as rarely as the level says. Of harm these are taken
to be as the best and the worst gain that were seen of either version, of a canary that is to pass as any can be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.monitor.skill.clusters import FEWEST, Estimate
from raymlops.monitor.skill.sequence import log_evidence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.monitor.skill.clusters import Floats

_POWERS = np.arange(5)
_CHOOSE = np.array([[math.comb(k, j) for j in _POWERS] for k in _POWERS], dtype=np.float64)


@dataclass(frozen=True)
class Lost:
    """What a canary loses of the champion's gain; fields are numbers, or arrays of many rollouts.

    Attributes:
        sums: Of the powers 0 to 4 of the numbers above, (..., 5).
        most: The largest of them that a request of an unseen kind may have.
    """

    sums: Floats
    most: Any

    @classmethod
    def of(cls, canary: Any, champion: Any, *, keep: float = 1.0, unseen: tuple[Any, Any] = (-1.0, 1.0)) -> Lost:
        """Compare sums of the powers 0 to 4 of both versions' gains at a step, (..., 5); nothing where one has none.

        ``unseen`` are the gains that requests of an unseen kind are taken to have, of the canary and of the champion.
        """
        ours, theirs = np.asarray(canary, dtype=np.float64), np.asarray(champion, dtype=np.float64)
        m, n = ours[..., 0], theirs[..., 0]
        both = (m > 0) & (n > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            centre = (ours[..., 1] / m * n + keep * theirs[..., 1] / n * m) / (m + n)
            up, down = (m + n) / m, (m + n) / n
            sums = _moved(ours, -up, centre * up) + _moved(theirs, keep * down, -centre * down)
            most = np.maximum(up * np.abs(unseen[0] - centre), down * np.abs(keep * unseen[1] - centre))
        return cls(np.where(both[..., None], sums, 0.0), np.where(both, most, 0.0))

    def __add__(self, other: Lost) -> Lost:
        """Return that of both steps."""
        return Lost(self.sums + other.sums, np.maximum(self.most, other.most))

    @property
    def negative(self) -> Lost:
        """Return what is kept beyond the part that is to be kept."""
        return Lost(self.sums * (-1.0) ** _POWERS, self.most)

    @property
    def value(self) -> Any:
        """Return the mean; 0 without requests."""
        return self.sums[..., 1] / np.maximum(self.sums[..., 0], 1.0)

    @property
    def few(self) -> Any:
        """Return whether requests are too few for a verdict."""
        count, _, squares, _, fourth = np.moveaxis(self.sums, -1, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            carried = np.where(fourth > 0, squares**2 / fourth, count)
        return ~(np.minimum(count, carried) >= FEWEST)

    def log_evidence(self, *, level: float) -> Any:
        """Return the logarithm of the evidence that the mean is above 0, whatever requests were not seen.

        If it is not, that ever exceeds ``-log(level)`` with probability at most ``level``.
        """
        count, first, squares, _, _ = np.moveaxis(self.sums, -1, 0)
        n = np.maximum(count, 2.0)
        unseen = -np.expm1(math.log(level / 2) / n)
        value = first / n
        variance = np.maximum(squares - first * value, 0.0) / (n - 1) / n
        found = Estimate(value, variance, 0.0, n - 1, n, -self.most, self.most)
        grown = log_evidence(found.z(unseen / (1 - unseen) * self.most), n)
        return np.where(self.few, 0.0, grown)[()]


def log_harm(steps: Sequence[tuple[Any, Any]], *, level: float, extremes: tuple[Any, Any] = (-1.0, 1.0)) -> Any:
    """Return the logarithm of the evidence that a canary gains less than the champion.

    ``steps`` are both versions' sums at each step, ``extremes`` the least and the largest gain of both. It is an
    average over the steps since which it might be so, as in ``sequence.log_evidence_since``: what an earlier step
    showed is neither lost nor in the way of a later one.
    """
    found = [Lost.of(*step, unseen=extremes[::-1]) for step in steps]
    since, parts = None, []
    for number, lost in zip(range(len(found), 0, -1), reversed(found), strict=True):
        since = lost if since is None else since + lost
        parts.append(since.log_evidence(level=level) - math.log(number * (number + 1)))
    ahead = np.full_like(parts[0], -math.log(len(found) + 1)) if parts else 0.0
    return np.logaddexp.reduce([*parts, ahead], axis=0)


def log_kept(canary: Any, champion: Any, *, margin: float, level: float) -> Any:
    """Return the logarithm of the evidence that at most the part ``margin`` of the champion's gain is lost."""
    return Lost.of(canary, champion, keep=1 - margin).negative.log_evidence(level=level)


def part_lost_at_most(canary: Any, champion: Any, *, level: float) -> float | None:
    """Return the smallest part of the champion's gain of which it is sure that no more is lost; None: of no part.

    It is looked for from -3, a gain that is four times the champion's, to 3.
    """

    def sure(part: float) -> bool:
        return bool(log_kept(canary, champion, margin=part, level=level) >= -math.log(level))

    low, high = -3.0, 3.0
    if not sure(high):
        return None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if sure(middle) else (middle, high)
    return high


_HALVINGS = 14
"""Of the parts looked at: a bound is too wide by at most 0.0004."""


def _moved(powers: Floats, scale: Any, shift: Any) -> Floats:
    """Return the sums of powers of ``scale * gain + shift``, by those of the gains."""
    a, b = np.asarray(scale)[..., None], np.asarray(shift)[..., None]
    terms = [
        (_CHOOSE[k, : k + 1] * powers[..., : k + 1] * a ** _POWERS[: k + 1] * b ** _POWERS[k::-1]) for k in _POWERS
    ]
    return np.stack([term.sum(axis=-1) for term in terms], axis=-1)
