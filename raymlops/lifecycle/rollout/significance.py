"""The questions about a canary: more errors, slower answers, worse answers? Pure: evidence in, findings out.

Owns how counts become evidence of harm, and the bounds with which a step passes. Knows nothing of the order and the
times of steps.

The rollout's ``alpha`` is split: half for errors, a quarter each for slowness and quality. A canary as good as the
champion is found harmful by any of them, in any step, at any look, with probability at most ``alpha`` (see
``monitor.sequential``, which also says what that presumes, and ``monitor.skill.gain`` for quality). Harm below a tenth
of the margin is no reason to stop, however certain it is.

The margin of quality is a part of what the champion gains over a blind predictor, one that knows the labels' shares (or
the median of numbers) and nothing of a row. Whatever the losses are worth, a constant loses all of that, and exchanged
ranks more than all. Beside a champion that gains nothing, a canary passes that is better.

That promise is for ``sticky: request``. If callers keep to a version and differ (in simulations a fifth of them
erred, the others never, a few sent most), an equally good version was aborted in 28% of rollouts with ten callers, in
24% with a hundred and in 6% with ten thousand: the canary may simply have received the bad ones.

A request whose rows the recipe rejects counts as an error does, for both versions alike: bad rows fall to both, and a
version that rejects more of them than the champion is worse for its callers.

Three things are not visible. Requests rejected because the queue was full are left out for both versions, so that a
canary that handles less load than the champion shows it as late answers or not at all. A canary that cannot be reached
errs, whether its own code ended it or a machine that failed under it, while a champion that is lost takes its counts
with it: a node that dies under the canary alone can abort a good version. And a caller that disconnects counts as a
slow answer of the version that got its request, whatever the reason.

Evidence is recomputed from the counts at each step of the controller. If a replica dies with its counts, the rest is a
smaller sample, as fair as the whole: evidence and bounds fall back to what it shows.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

from raymlops.monitor.sequential import rate_bounds, rate_harm
from raymlops.monitor.skill.clusters import FEWEST
from raymlops.monitor.skill.gain import log_harm, part_lost_at_most
from raymlops.predictions.counts import Counts, Losses
from raymlops.records import Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.config.serve import RolloutSection

RELEVANT = 0.1
"""Share of a margin below which harm is no reason to stop."""
_PARTS = {"errors": 0.5, "slow": 0.25, "quality": 0.25}
_WORDS = {"errors": "errors and rejected requests", "slow": "slow answers", "quality": "mean loss"}
_GAIN = "what the champion gains over a blind predictor"
_LARGEST = math.log(1e12)
"""Evidence is capped at this: JSON has no infinity."""


@dataclass(frozen=True)
class StepEvidence(Record):
    """The counts at one step, while the traffic was split."""

    weight: float
    """The canary's share of the requests that were assigned at random, 0 to 1."""
    canary: Counts = field(default_factory=Counts)
    champion: Counts = field(default_factory=Counts)
    canary_losses: Losses = field(default_factory=Losses)
    champion_losses: Losses = field(default_factory=Losses)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        counted = {name: getattr(self, name).to_dict() for name in self.__dataclass_fields__ if name != "weight"}
        return {"weight": self.weight, **counted}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Restore it from JSON data; missing fields are empty."""
        return cls(
            weight=data["weight"],
            canary=Counts.from_dict(data.get("canary", {})),
            champion=Counts.from_dict(data.get("champion", {})),
            canary_losses=Losses.from_dict(data.get("canary_losses", {})),
            champion_losses=Losses.from_dict(data.get("champion_losses", {})),
        )


@dataclass(frozen=True)
class Side(Record):
    """One version at one step, as a question sees it."""

    count: int
    """Requests, or labelled ones."""
    value: float | None
    """Share of its requests, or mean loss; None without any."""


@dataclass(frozen=True)
class Finding(Record):
    """One question's answer. ``canary`` and ``champion`` are of this step, the evidence is of all."""

    question: str
    canary: Side
    champion: Side
    evidence: float
    """An equally good version ever reaches this in at most one of this many rollouts (an e-value)."""
    limit: float
    excess: float
    """By how much the canary is worse, in the unit of the margin: at this step or over all, whichever is more."""
    most: float | None
    """By how much it is worse at most, surely, at this step; None where nothing bounds it."""
    margin: float
    """A share of the requests, or of quality the part of the champion's gain over a blind predictor."""
    clipped: tuple[bool, bool] = (False, False)
    """Whether most losses of the canary, and of the champion, do not measure their errors."""

    @property
    def harmful(self) -> bool:
        """Return whether the canary is worse, surely and by enough to matter.

        Never where most of the champion's losses are clipped: then its errors are no scale to measure others by.
        """
        return self.evidence >= self.limit and self.excess >= RELEVANT * self.margin and not self.clipped[1]

    @property
    def passed(self) -> bool:
        """Return whether it is worse by no more than the margin, surely; never where most losses are clipped."""
        return self.most is not None and self.most <= self.margin and not any(self.clipped)

    @property
    def harm(self) -> str:
        """Return by how much it is worse, and how sure that is."""
        sides = (f"{self._number(side.value)} of {side.count:,}" for side in (self.canary, self.champion))
        lost = f", {self.excess:.0%} of {_GAIN} is lost" if self.question == "quality" else ""
        return (
            f"{self._words} {' against '.join(sides)} {self._unit} at this step{lost}; an equally good version ever "
            f"shows as much in at most 1 of {self.evidence:,.0f} rollouts, and 1 of {self.limit:,.0f} is the limit"
        )

    @property
    def bounds(self) -> str:
        """Return what is known of both."""
        if self.question == "quality":
            return f"{'an unknown part' if self.most is None else f'at most {self.most:.0%}'} of {_GAIN} is lost"
        most = "by an unknown share" if self.most is None else f"at most {self.most:.2%} above the champion's"
        return f"{self._words} {most}"

    @property
    def lack(self) -> str:
        """Return why it has not passed."""
        if any(self.clipped):
            whose = " and ".join(name for name, most in zip(("canary", "champion"), self.clipped, strict=True) if most)
            return (
                f"no verdict on quality: most losses of the {whose} are clipped at 1, which says that errors are large "
                f"and not how large; {self.bounds}"
            )
        few = "too few " if self.excess <= self.margin / 2 else ""
        return (
            f"{few}{self._unit}, {self.canary.count:,} of the canary and {self.champion.count:,} of the champion: "
            f"{self.bounds}, and {self.margin:.2%} is allowed"
        )

    @property
    def _words(self) -> str:
        return _WORDS[self.question]

    @property
    def _unit(self) -> str:
        return "labelled requests" if self.question == "quality" else "requests"

    def _number(self, value: float | None) -> str:
        if value is None:
            return "nothing"
        return f"{value:.4g}" if self.question == "quality" else f"{value:.2%}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {**asdict(self), "harmful": self.harmful, "passed": self.passed}


def find(steps: Sequence[StepEvidence], settings: RolloutSection, *, labelled: bool = False) -> list[Finding]:
    """Return the findings of a rollout's steps so far, of which the last one is the current one.

    Quality is judged once both versions have labelled requests at any step, or before that where the model is
    ``labelled``: evidence of harm is kept when a step begins, and passing requires labels of the current one, of which
    those that came so far may be such that cannot be compared. Losses that are clipped at 1 do not say how wrong an
    answer was: if most are, there is no verdict, unless they are the canary's alone, which can only be harm. A late
    answer of the canary is a slow one: the champion's that take as long are slow too.
    """
    errors = [_Shares.of(step, "errors", "refused") for step in steps]
    slow = [_Shares.of(step, "slow", "late") for step in steps]
    findings = [
        _of_shares("errors", errors, alpha=settings.alpha, margin=settings.error_margin),
        _of_shares("slow", slow, alpha=settings.alpha, margin=settings.slow_margin),
    ]
    counted = any(step.canary_losses.count and step.champion_losses.count for step in steps)
    if settings.quality_margin is not None and (counted or labelled):
        findings.append(_of_gains(steps, alpha=settings.alpha, margin=settings.quality_margin))
    return findings


def note_on_quality(steps: Sequence[StepEvidence]) -> str:
    """Return why quality is not judged, or which losses failed; empty otherwise."""
    notes = (losses.note for step in reversed(steps) for losses in (step.champion_losses, step.canary_losses))
    return next(filter(None, notes), "")


@dataclass(frozen=True)
class _Shares:
    """The shares of requests with an event, of both versions at one step: events and requests of each."""

    weight: float
    canary: tuple[int, int]
    champion: tuple[int, int]

    @classmethod
    def of(cls, step: StepEvidence, *events: str) -> _Shares:
        """Count requests with any of these events; impossible counts are clamped."""

        def pair(counts: Counts) -> tuple[int, int]:
            total = max(0, counts.requests)
            return min(total, max(0, sum(getattr(counts, event) for event in events))), total

        return cls(step.weight, pair(step.canary), pair(step.champion))

    @property
    def sizes(self) -> tuple[int, int]:
        return self.canary[1], self.champion[1]

    @property
    def difference(self) -> float:
        return self.canary[0] / max(1, self.canary[1]) - self.champion[0] / max(1, self.champion[1])

    def harm(self, weight: float) -> float:
        """Return the log of the evidence that the canary is worse, if a request falls to it with this probability."""
        return float(rate_harm(self.canary, self.champion, weight=weight))

    @property
    def observed(self) -> float:
        """Return the canary's share of the requests."""
        return self.canary[1] / max(1, sum(self.sizes))


def _of_shares(question: str, steps: Sequence[_Shares], *, alpha: float, margin: float) -> Finding:
    alpha *= _PARTS[question]
    evidence = sum(step.harm(step.weight) for step in steps)
    if evidence >= -math.log(alpha):
        # Callers that keep to a version may send another share of the requests than theirs of the callers: only
        # evidence with both shares counts. If requests are assigned at random, both are about the same.
        evidence = sum(min(step.harm(step.weight), step.harm(step.observed)) for step in steps)
    canary, champion = (Side(total, events / total if total else None) for events, total in _sides(steps[-1]))
    upper, lower = (rate_bounds(*side, alpha=alpha / 2) for side in _sides(steps[-1]))
    return Finding(
        question=question,
        canary=canary,
        champion=champion,
        evidence=math.exp(min(evidence, _LARGEST)),
        limit=1 / alpha,
        excess=max(_excess(steps), _excess(steps[-1:])),
        most=upper[1] - lower[0],
        margin=margin,
    )


def _sides(step: _Shares) -> tuple[tuple[int, int], tuple[int, int]]:
    return step.canary, step.champion


def _of_gains(steps: Sequence[StepEvidence], *, alpha: float, margin: float) -> Finding:
    alpha *= _PARTS["quality"]
    now = steps[-1].canary_losses, steps[-1].champion_losses
    gains = [(one.canary_losses.gains, one.champion_losses.gains) for one in steps]
    champion = sum((one.champion_losses for one in steps), Losses())
    extremes = sum((one.canary_losses for one in steps), champion).extremes
    enough = min(now[0].count, now[1].count) >= FEWEST
    return Finding(
        question="quality",
        canary=Side(now[0].count, now[0].mean if now[0].count else None),
        champion=Side(now[1].count, now[1].mean if now[1].count else None),
        evidence=math.exp(min(float(log_harm(gains, extremes=extremes)), _LARGEST)),
        limit=1 / alpha,
        excess=max(_part_lost(steps), _part_lost(steps[-1:])),
        most=part_lost_at_most(gains, extremes=extremes, log_limit=-math.log(alpha)) if enough else None,
        margin=margin,
        clipped=(now[0].mostly_clipped, champion.mostly_clipped),
    )


def _part_lost(steps: Sequence[StepEvidence]) -> float:
    """Return the part of the champion's gain that is lost; 1 of a champion that gains nothing, where any is lost."""
    both = [
        (one.canary_losses, one.champion_losses)
        for one in steps
        if one.canary_losses.count and one.champion_losses.count
    ]
    lost = _mean([(ours.count + theirs.count, theirs.gain - ours.gain) for ours, theirs in both])
    gain = _mean([(ours.count + theirs.count, theirs.gain) for ours, theirs in both])
    return lost / gain if gain > 0 else float(lost > 0)


def _excess(steps: Sequence[_Shares]) -> float:
    return _mean([(sum(step.sizes) if all(step.sizes) else 0, step.difference) for step in steps])


def _mean(parts: Sequence[tuple[int, float]]) -> float:
    """Return the mean over steps by their requests.

    Not the difference of the sums over all steps: a bad hour at a step with many canary requests would count against
    the canary.
    """
    return sum(size * value for size, value in parts) / max(1, sum(size for size, _ in parts))
