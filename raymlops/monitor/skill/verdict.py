"""The verdict on a model's quality since its promotion, and on a challenger beside it. Pure.

Both may be asked for at every window or every day. A model that is as it was is called worse, at any look of its life,
with probability at most ``level``: three quarters of that are for chance in the windows (``sequence``), a quarter for
chance in the reference rows, which is the same in all windows and does not average out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import special

from raymlops.monitor.skill import sequence
from raymlops.monitor.skill.clusters import FEWEST, Estimate, Moments, by_cluster
from raymlops.monitor.skill.days import Days, days_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from raymlops.monitor.skill.expected import Window

Outcome = Literal["worse", "as before", "not enough labels", "no verdict"]
Comparison = Literal["worse", "better", "no worse", "not enough labels"]

LEVEL = 0.01
"""Of a model that is as it was, ever called worse."""
MARGIN = 0.01
"""Skill that may be lost without a verdict, however sure it is: what is shown is that more than it is lost."""
SHOWS = 0.1
"""A loss of skill that must be visible: while bounds leave it open whether so much is lost, labels are too few."""
MOST_TOLD = 10_000
"""Evidence beyond which its number tells a person nothing."""
_REFERENCE_PART = 0.25
"""Of ``LEVEL``: what ``expected.MISSED`` is."""
_LARGEST = 700.0
"""Logarithm of the largest evidence that is kept."""


@dataclass(frozen=True)
class Verdict:
    """What is to be said of a model since its promotion.

    Attributes:
        outcome: ``worse``, ``as before``, ``not enough labels``, or ``no verdict`` where labels are not to be believed.
        reason: Why, with numbers, in one sentence.
        lost: Skill lost on average since the promotion; None without labels.
        low: Its lower bound, which holds at all looks; None for as yet unbounded.
        high: Its upper bound, likewise.
        clusters: Labelled requests, as many as those of equal weight that they are worth.
        evidence: A model that is as it was ever reaches it in at most one of so many lives.
        limit: The evidence at which it is worse.
        since: The number of the window, from 0, since which it is most likely worse; None unless it is.
    """

    outcome: Outcome
    reason: str
    lost: float | None
    low: float | None
    high: float | None
    clusters: float
    evidence: float
    limit: float
    since: int | None = None


def judge(
    windows: Sequence[Window],
    *,
    level: float = LEVEL,
    margin: float = MARGIN,
    shows: float = SHOWS,
    refused: str = "",
    known: Days | None = None,
) -> Verdict:
    """Judge a model by all windows since its promotion, in their order.

    Days whose requests share their fate differ as these windows do, and as is ``known`` of the test rows. Without both,
    as at the first window, nobody is worse. ``refused`` says why the labels are not to be believed, and then there is
    no verdict.
    """
    known = known or Days()
    reach = float(-special.ndtri(level * _REFERENCE_PART)) if any(window.error for window in windows) else 0.0
    chance = level * (1 - _REFERENCE_PART) if reach else level
    if not windows:
        return Verdict("not enough labels", "no row has a label yet", None, None, None, 0.0, 1.0, 1 / chance)
    sums = Moments(np.stack([window.lost.sums for window in windows]))
    errors = np.array([window.error for window in windows])
    whole = Moments(sums.sums.sum(axis=0))
    # A loss is at least 0, so that no more is gained than what is expected to be lost.
    least = np.array([-window.expected / window.reference for window in windows])
    found = replace(whole.estimate(), least=float(least @ sums.sums[:, 1] / max(whole.sums[1], 1e-300)))
    clusters = float(np.nan_to_num(found.effective))
    worth = whole.sums[1] ** 2 / max((sums.sums[:, 1] ** 2).sum(), 1e-300)
    found = replace(found, variance=found.variance + (days_of(sums).at(0) + known).of_mean(worth))
    low, high = sequence.interval(found, alpha=2 * chance)
    blur = reach * float(errors @ sums.sums[:, 1] / max(whole.sums[1], 1e-300))
    lower, upper = (float(end) if math.isfinite(end) else None for end in (low - blur, high + blur))
    allowed = margin + reach * errors
    log_evidence, since = sequence.log_evidence_since(sums.less(allowed), least=least - allowed, known=known)
    evidence, limit = math.exp(min(float(log_evidence), _LARGEST)), 1 / chance

    def say(outcome: Outcome, reason: str) -> Verdict:
        began = int(since) if outcome == "worse" else None
        value = float(found.value) if clusters else None
        return Verdict(outcome, reason, value, lower, upper, clusters, evidence, limit, began)

    if refused:
        return say("no verdict", refused)
    if whole.few:
        return say("not enough labels", whole.few)
    if evidence >= limit:
        lately = Moments(sums.sums[int(since) :].sum(axis=0)).estimate()
        reason = (
            f"{float(lately.value):.3f} of skill lost since window {int(since) + 1} of {len(windows)}, more than "
            f"{margin:g} (a model as it was shows as much in {seldom(evidence)} lives; 1 of {limit:,.0f} is the limit)"
        )
        return say("worse", reason)
    if upper is None or upper > shows:
        most = "nothing bounds the skill that may be lost" if upper is None else f"{upper:.3f} of skill may be lost"
        return say("not enough labels", f"{most}, and {shows:g} has to be visible")
    return say("as before", f"{float(found.value):+.3f} of skill lost on average, at most {upper:.3f}")


def seldom(evidence: float) -> str:
    """Return how often evidence like this comes by chance, in words that a person can read."""
    return f"1 of {evidence:,.0f}" if evidence <= MOST_TOLD else f"less than 1 of {MOST_TOLD:,}"


def above(losses: Sequence[Moments], bound: Any, *, level: float = LEVEL) -> tuple[bool, float]:
    """Return whether a mean is above a bound since some window, and how sure that is.

    One that is not is ever called so with probability at most ``level``. ``losses``, none below 0, are those of the
    windows in their order. There is one bound, or one for each window.
    """
    if not losses:
        return False, 1.0
    allowed = np.broadcast_to(np.asarray(bound, dtype=np.float64), len(losses))
    beyond = Moments(np.stack([one.sums for one in losses])).less(allowed)
    log_evidence, _ = sequence.log_evidence_since(beyond, least=-allowed)
    evidence = math.exp(min(float(log_evidence), _LARGEST))
    return evidence >= 1 / level, evidence


@dataclass(frozen=True)
class Paired:
    """Two models on the same labelled requests, in skill: sums that add over days.

    What skewness a sample of differences shows is mostly chance: two alike models swap without a change. With it,
    intervals of log losses at 40 requests held in 92% and without it in 95%, so that it is left out.

    What decides may be rare: of two models for an event of one request in a thousand, the one that never expects it is
    better on all others. So two more things are asked. At least 40 requests carry the difference: so many of one size
    have the same ratio of its powers. And bounds allow for requests of a kind that was not seen yet, up to the share
    that so many would have missed as rarely as the level says, on which one of both is as wrong as can be.

    Attributes:
        champion: Its losses.
        challenger: Its losses.
        difference: By how much the challenger's are larger.
        fourth: The sum of the fourth powers of the differences of requests.
        most: The largest difference that a row can make.
    """

    champion: Moments
    challenger: Moments
    difference: Moments
    fourth: float
    most: float

    @classmethod
    def of(
        cls,
        champion: Any,
        challenger: Any,
        *,
        clusters: Any,
        reference: float,
        weights: Any = None,
        most: float = 1.0,
    ) -> Paired:
        """Sum up the losses of both models on the same rows.

        ``reference`` is the reference predictor's loss there, ``most`` the largest loss that an answer can have.
        """
        losses = np.stack([np.asarray(champion, dtype=np.float64), np.asarray(challenger, dtype=np.float64)], axis=1)
        totals, m = by_cluster(clusters, losses / reference, weights)
        ours, theirs = totals.T
        lost = theirs - ours
        fourth = float((lost**4).sum())
        return cls(Moments.of(ours, m), Moments.of(theirs, m), Moments.of(lost, m), fourth, most / reference)

    def __add__(self, other: Paired) -> Paired:
        """Return those of both days."""
        return Paired(
            self.champion + other.champion,
            self.challenger + other.challenger,
            self.difference + other.difference,
            self.fourth + other.fourth,
            max(self.most, other.most),
        )

    @property
    def carried(self) -> float:
        """Return how many requests carry the difference; all of them where there is none."""
        squares = self.difference.squares
        return squares**2 / self.fourth if self.fourth > 0 else float(self.difference.clusters)

    def estimate(self) -> Estimate:
        """Return the skill that is lost by the challenger."""
        return replace(self.difference.estimate(), third=0.0)

    @property
    def few(self) -> str:
        """Return why nothing is said yet; empty where it may be."""
        if self.difference.few or self.carried >= FEWEST:
            return self.difference.few
        count = int(self.difference.clusters)
        told = f"{count:,} labelled requests, and as many as {self.carried:.0f} of them carry the difference"
        return f"{told}: {FEWEST} are needed"

    def bounds(self, *, level: float = LEVEL) -> tuple[float, float]:
        """Return bounds of that, each of which ever fails, at any look, with probability at most ``level``."""
        found = self.estimate()
        low, high = sequence.interval(found, alpha=level)
        if not self.fourth:  # they never differed
            return low, high
        unseen = -math.expm1(math.log(level / 2) / found.effective)
        return (1 - unseen) * low - unseen * self.most, (1 - unseen) * high + unseen * self.most

    def compare(self, *, level: float = LEVEL, margin: float = MARGIN) -> tuple[Comparison, str]:
        """Return what is to be said of the challenger, at any look, and why.

        An equally good one is ever called worse with probability at most ``level``, and better likewise; one that is
        worse by more than ``margin`` is called no worse as rarely.
        """
        if self.few:
            return "not enough labels", self.few
        low, high = self.bounds(level=level)
        told = f"{self.estimate().value:+.3f} of skill lost by the challenger, between {low:+.3f} and {high:+.3f}"
        if low > 0:
            return "worse", told
        if high < 0:
            return "better", told
        if high <= margin:
            return "no worse", told
        return "not enough labels", f"{told}; {margin:g} is allowed"
