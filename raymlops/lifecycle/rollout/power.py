"""What a rollout can show with a given traffic: which difference, and after how long there is a verdict. Pure.

Owns the forecast and its words. It asks ``significance`` about the counts to be expected where both versions are
equally good, so that it says what the rollout itself will decide. Where requests fail it takes longer; a version that
is worse may be found much sooner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raymlops.lifecycle.rollout.significance import StepEvidence, find
from raymlops.predictions.counts import Counts, Losses
from raymlops.records import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raymlops.config.serve import RolloutSection
    from raymlops.lifecycle.rollout.label_lag import LateLabels
    from raymlops.lifecycle.rollout.significance import Finding

LONGEST_S = 30 * 86_400.0
"""A verdict that takes longer is none."""
_HOUR_S = 3600.0
_TOLERANCE = 1.02
"""Of a forecast time."""


@dataclass(frozen=True)
class RecentTraffic(Record):
    """What chance would give to versions: the requests of a model in the last hour, without pinned ones and copies."""

    requests: float
    """An hour."""
    slow: float = 0.0
    """Share of slow answers."""
    labelled: float | None = None
    """Requests whose first label arrived in the last hour; None where labels do not arrive, or are not compared."""
    answers: Losses = field(default_factory=Losses)
    """The losses of the champion's newest labelled answers, some thousand at most."""
    late: LateLabels | None = None
    """Said where most labels arrive after their rows are removed."""


@dataclass(frozen=True)
class StepPower(Record):
    """What a step can show of two equally good versions."""

    weight: float
    bake_s: float
    shows: dict[str, float | None]
    """By question: the smallest difference that can be excluded after the bake, in the unit of its margin; or None."""
    verdict_s: float | None
    """When it passes, at ``bake_s`` or later; None: not within 30 days."""


def forecast(traffic: RecentTraffic, settings: RolloutSection) -> list[StepPower]:
    """Return what each step can show with this traffic."""
    return [_step(traffic, percent / 100, settings) for percent in settings.steps if percent < 100]


def expected(
    seconds: float,
    traffic: RecentTraffic,
    *,
    weight: float,
    settings: RolloutSection,
    errors: float = 0.0,
    worse: float = 0.0,
) -> list[Finding]:
    """Return the findings after so many seconds of a step, of counts as they are to be expected.

    Labelled answers are taken to be as the champion's newest; without these nothing is said of quality. The canary's
    shares are higher by ``worse``.
    """
    sides = [(round(traffic.requests * seconds / _HOUR_S * part), more) for part, more in _parts(weight, worse)]
    counts = [
        Counts(total, round(total * min(1.0, errors + more)), round(total * min(1.0, traffic.slow + more)))
        for total, more in sides
    ]
    labelled = (traffic.labelled or 0.0) * seconds / _HOUR_S
    losses = [traffic.answers.times(labelled * part / max(1, traffic.answers.count)) for part in (weight, 1 - weight)]
    step = StepEvidence(weight, counts[0], counts[1], losses[0], losses[1])
    found = find([step], settings, labelled=traffic.labelled is not None)
    unknown = traffic.labelled and not traffic.answers.count
    return [one for one in found if one.question != "quality" or not unknown]


def in_words(traffic: RecentTraffic, settings: RolloutSection) -> tuple[str, ...]:
    """Return what each step can show, in a sentence each."""
    steps = forecast(traffic, settings)
    if not traffic.requests:
        return (f"no request in the last hour: without traffic there is no verdict, and {_end(settings)}",)[
            : len(steps)
        ]
    said = [
        f"step {number} of {len(settings.steps)}: at {traffic.requests:,.0f} requests an hour and "
        f"{100 * step.weight:g}% canary, {_duration(step.bake_s)} can show a difference of {_shown(step, settings)}; "
        f"{_verdict(step, settings)}"
        for number, step in enumerate(steps, start=1)
    ]
    if steps and traffic.labelled == 0:
        said.append("labels arrived in the last seven days, and none in the last hour: each step waits for them")
    elif steps and traffic.labelled and traffic.answers.note:
        said.append(f"quality cannot be judged yet: {traffic.answers.note}")
    elif steps and traffic.labelled and not traffic.answers.gain > 0:
        count, none = traffic.answers.count, "nothing over a blind predictor, so that a canary passes that is better"
        gains = none if count else "an unknown part: none of their rows was found in the log"
        said.append(f"by the champion's newest {count:,} labelled answers it gains {gains}")
    if steps and traffic.late is not None:
        said.append(traffic.late.sentence())
    return tuple(said)


def _step(traffic: RecentTraffic, weight: float, settings: RolloutSection) -> StepPower:
    def passes(seconds: float) -> bool:
        return all(found.passed for found in expected(seconds, traffic, weight=weight, settings=settings))

    found = expected(settings.bake_s, traffic, weight=weight, settings=settings)
    shows = {one.question: one.most for one in found}
    return StepPower(weight, settings.bake_s, shows, _first(passes, max(1.0, settings.bake_s)))


def _first(passes: Callable[[float], bool], start: float) -> float | None:
    """Return about the first time from ``start`` on at which it passes."""
    if passes(start):
        return start
    low, high = start, 2 * start
    while not passes(high):
        low, high = high, 2 * high
        if low > LONGEST_S:
            return None
    while high / low > _TOLERANCE:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


def _parts(weight: float, worse: float) -> Sequence[tuple[float, float]]:
    """Return each version's share of the requests, and by how much it is worse; the canary first."""
    return (weight, worse), (1 - weight, 0.0)


def _shown(step: StepPower, settings: RolloutSection) -> str:
    margins = {"errors": settings.error_margin, "slow": settings.slow_margin, "quality": settings.quality_margin}
    words = {
        "errors": "{:.1%} in errors (margin {:.1%})",
        "slow": "{:.1%} in slow answers (margin {:.1%})",
        "quality": "{:.0%} of what the champion gains over a blind predictor (margin {:.0%})",
    }
    return ", ".join(
        words[question].format(value, margins[question]) if value is not None else f"no difference in {question}"
        for question, value in step.shows.items()
    )


def _verdict(step: StepPower, settings: RolloutSection) -> str:
    wait_s = max(settings.bake_s, settings.max_wait_s)
    if step.verdict_s is not None and step.verdict_s <= wait_s:
        return f"an equally good version passes after about {_duration(step.verdict_s)}"
    takes = "more than 30 days" if step.verdict_s is None else f"about {_duration(step.verdict_s)}"
    return f"a verdict takes {takes}, and after {_duration(wait_s)} {_end(settings)}"


def _end(settings: RolloutSection) -> str:
    return "the step is held" if settings.on_no_verdict == "hold" else "the rollout is aborted"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR_S:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / _HOUR_S:.0f} h" if seconds < 2 * 86_400 else f"{seconds / 86_400:.0f} days"
