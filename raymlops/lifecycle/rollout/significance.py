"""The questions about a canary: more errors, slower answers, worse answers? Pure: evidence in, findings out.

Owns how counts become evidence of harm, and the bounds with which a step passes. Knows nothing of the order and the
times of steps.

The rollout's ``alpha`` is split: half for errors, a quarter each for slowness and quality. A canary as good as the
champion is found harmful by any of them, in any step, at any look, with probability at most ``alpha`` (see
``monitor.sequential``, which also says what that presumes). Harm below a tenth of the margin is no reason to
stop, however certain it is.

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
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from raymlops.monitor.sequential import loss_harm, mean_bounds, rate_bounds, rate_harm
from raymlops.predictions.counts import LEVELS, Counts, Losses
from raymlops.records import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raymlops.config.serve import RolloutSection

RELEVANT = 0.1
"""Share of a margin below which harm is no reason to stop."""
_PARTS = {"errors": 0.5, "slow": 0.25, "quality": 0.25}
_WORDS = {"errors": "errors and rejected requests", "slow": "slow answers", "quality": "mean loss"}
_LARGEST = math.log(1e12)
"""Evidence is capped at this: JSON has no infinity."""
_LEVELS = tuple(level / (LEVELS - 1) for level in range(LEVELS))


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
    lower: float
    upper: float
    """Bounds of ``value``, that hold at all times."""


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
    """The canary's value less the champion's: at this step or over all, whichever is more."""
    margin: float
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
        return self.canary.upper - self.champion.lower <= self.margin and not any(self.clipped)

    @property
    def harm(self) -> str:
        """Return by how much it is worse, and how sure that is."""
        sides = (f"{self._number(side.value)} of {side.count:,}" for side in (self.canary, self.champion))
        return (
            f"{self._words} {' against '.join(sides)} {self._unit} at this step; an equally good version ever shows "
            f"as much in at most 1 of {self.evidence:,.0f} rollouts, and 1 of {self.limit:,.0f} is the limit"
        )

    @property
    def bounds(self) -> str:
        """Return what is known of both."""
        upper, lower = self._number(self.canary.upper), self._number(self.champion.lower)
        return f"{self._words} at most {upper} against at least {lower}"

    @property
    def lack(self) -> str:
        """Return why it has not passed."""
        if any(self.clipped):
            whose = " and ".join(name for name, most in zip(("canary", "champion"), self.clipped, strict=True) if most)
            return (
                f"no verdict on quality: most losses of the {whose} are clipped at 1, which says that errors are large "
                f"and not how large; {self.bounds}"
            )
        difference = (self.canary.value or 0.0) - (self.champion.value or 0.0)
        few = "too few " if difference <= self.margin / 2 else ""
        return (
            f"{few}{self._unit}, {self.canary.count:,} of the canary and {self.champion.count:,} of the champion: "
            f"{self.bounds}, and {self._number(self.margin)} more is allowed"
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
        return f"{value:.3f}" if self.question == "quality" else f"{value:.2%}"

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
    errors = [_shares(step, "errors", "refused") for step in steps]
    slow = [_shares(step, "slow", "late") for step in steps]
    findings = [
        _finding("errors", errors, alpha=settings.alpha, margin=settings.error_margin),
        _finding("slow", slow, alpha=settings.alpha, margin=settings.slow_margin),
    ]
    counted = any(step.canary_losses.count and step.champion_losses.count for step in steps)
    if settings.quality_margin is not None and (counted or labelled):
        means = [_means(step) for step in steps]
        quality = _finding("quality", means, alpha=settings.alpha, margin=settings.quality_margin)
        champion = sum((step.champion_losses for step in steps), Losses())
        clipped = (steps[-1].canary_losses.mostly_clipped, champion.mostly_clipped)
        findings.append(replace(quality, clipped=clipped))
    return findings


def note_on_quality(steps: Sequence[StepEvidence]) -> str:
    """Return why quality is not judged, or which losses failed; empty otherwise."""
    notes = (losses.note for step in reversed(steps) for losses in (step.champion_losses, step.canary_losses))
    return next(filter(None, notes), "")


@dataclass(frozen=True)
class _Sample:
    """Requests of one version at one step, as a question sees them."""

    count: int
    mean: float
    """Share of events, or mean loss; 0 without requests."""
    bounds: Callable[[float], tuple[float, float]]
    """Of the mean, by alpha."""

    def side(self, alpha: float) -> Side:
        return Side(self.count, self.mean if self.count else None, *self.bounds(alpha))


@dataclass(frozen=True)
class _Comparison:
    """Both versions at one step."""

    weight: float
    canary: _Sample
    champion: _Sample
    harm: Callable[[float], float]
    """The log of the evidence that the canary is worse, by the probability with which a request falls to it."""

    @property
    def sizes(self) -> tuple[int, int]:
        return self.canary.count, self.champion.count


def _shares(step: StepEvidence, *events: str) -> _Comparison:
    """Compare the share of requests with any of these events; impossible counts are clamped."""

    def pair(counts: Counts) -> tuple[int, int]:
        total = max(0, counts.requests)
        return min(total, max(0, sum(getattr(counts, event) for event in events))), total

    def sample(number: int, total: int) -> _Sample:
        return _Sample(total, number / max(1, total), lambda alpha: rate_bounds(number, total, alpha=alpha))

    canary, champion = pair(step.canary), pair(step.champion)
    return _Comparison(
        step.weight,
        sample(*canary),
        sample(*champion),
        harm=lambda weight: float(rate_harm(canary, champion, weight=weight)),
    )


def _means(step: StepEvidence) -> _Comparison:
    """Compare the mean losses of labelled requests."""

    def sample(losses: Losses) -> _Sample:
        levels, numbers = [_LEVELS[level] for level, _ in losses.levels], [number for _, number in losses.levels]
        mean = losses.mean if losses.count else 0.0
        return _Sample(losses.count, mean, lambda alpha: mean_bounds(numbers, levels=levels, alpha=alpha))

    canary, champion = _row(step.canary_losses), _row(step.champion_losses)
    return _Comparison(
        step.weight,
        sample(step.canary_losses),
        sample(step.champion_losses),
        harm=lambda weight: float(loss_harm(canary, champion, levels=_LEVELS, weight=weight)),
    )


def _finding(question: str, steps: Sequence[_Comparison], *, alpha: float, margin: float) -> Finding:
    alpha *= _PARTS[question]
    evidence = sum(step.harm(step.weight) for step in steps)
    if evidence >= -math.log(alpha):
        # Callers that keep to a version may send another share of the requests than theirs of the callers: only
        # evidence with both shares counts. If requests are assigned at random, both are about the same.
        evidence = sum(min(step.harm(step.weight), step.harm(_observed(step))) for step in steps)
    canary, champion = (sample.side(alpha / 2) for sample in (steps[-1].canary, steps[-1].champion))
    return Finding(
        question=question,
        canary=canary,
        champion=champion,
        evidence=math.exp(min(evidence, _LARGEST)),
        limit=1 / alpha,
        excess=max(_excess(steps), _excess(steps[-1:])),
        margin=margin,
    )


def _observed(step: _Comparison) -> float:
    canary, champion = step.sizes
    return canary / max(1, canary + champion)


def _excess(steps: Sequence[_Comparison]) -> float:
    """Return the difference, averaged over steps by their requests.

    Not that of the sums over all steps: a bad hour at a step with many canary requests would count against it.
    """
    sizes = [sum(step.sizes) if all(step.sizes) else 0 for step in steps]
    differences = (step.canary.mean - step.champion.mean for step in steps)
    return sum(size * difference for size, difference in zip(sizes, differences, strict=True)) / max(1, sum(sizes))


def _row(losses: Losses) -> list[int]:
    """Return the number of losses at each level."""
    row = [0] * LEVELS
    for level, number in losses.levels:
        row[level] = number
    return row
