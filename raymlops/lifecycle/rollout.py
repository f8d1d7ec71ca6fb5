"""What a rollout does next: wait, advance a step, promote or abort. Pure: record, evidence and time in, decision out.

Owns the order of steps and the times. What the evidence says is asked in ``questions``; who counts, who moves traffic
and who writes the record know nothing of either.

A step lasts at least ``bake_s``. It passes when errors, slow answers and, where labels exist, losses are surely within
their margins. It aborts the moment that one of them is surely worse than the champion's, and after ``max_wait_s``
without a verdict, which is how a rollout without traffic ends. Labels that are too few by then hold a step no longer:
a rollout without any would have gone on too, and those that come later still count.

**The last step.** With all of the traffic on the new version nobody is left to compare it with. So reaching 100 percent
is the promotion, decided on the steps before: ``10, 50, 100`` bakes at 10 and at 50 percent and then flips the route,
with the old champion kept warm for a flip back. Steps that end below 100 promote when the last one has passed, and
``100`` alone promotes at once.

A clock that is set back makes a step last longer, one that is set forward shorter; neither makes evidence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from raymlops.config.serve import RolloutSection
from raymlops.lifecycle.questions import StepEvidence, find, note_on_quality
from raymlops.records import Record
from raymlops.state.rollouts import Rollout

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from raymlops.lifecycle.questions import Finding

__all__ = ["RolloutDecision", "StepEvidence", "after", "begin", "decide", "evidence_of", "next_weight"]

Action = Literal["wait", "advance", "promote", "abort"]


@dataclass(frozen=True)
class RolloutDecision(Record):
    """What to do, why, and the numbers it rests on."""

    action: Action
    reason: str
    numbers: dict[str, Any]


def begin(
    *, rollout_id: str, name: str, version: int, champion: int, settings: RolloutSection, now: datetime
) -> Rollout:
    """Return the rollout of a version at its first step."""
    return Rollout(
        id=rollout_id,
        name=name,
        version=version,
        champion=champion,
        steps=tuple(percent / 100 for percent in settings.steps),
        step=0,
        status="running",
        settings=settings.model_dump(mode="json"),
        started_at=now,
        step_started_at=now,
    )


def decide(rollout: Rollout, evidence: Sequence[StepEvidence], *, now: datetime) -> RolloutDecision:
    """Return what a rollout does next.

    ``evidence`` is one entry a step, the current one last; steps of which nothing is known any more may be left empty
    (``StepEvidence(weight)``) or missing at the end.
    """
    if rollout.status != "running":
        return RolloutDecision("wait", f"it has ended: {rollout.status}", {})
    if rollout.weight >= 1:
        return RolloutDecision("promote", "no step below 100 percent, so nothing was compared", {})
    settings = _settings(rollout)
    steps = [*evidence[: rollout.step + 1]]
    steps += [StepEvidence(weight) for weight in rollout.steps[len(steps) : rollout.step + 1]]
    findings = find(steps, settings)
    seconds = max(0.0, (now - rollout.step_started_at).total_seconds())
    numbers: dict[str, Any] = {
        "step": rollout.step,
        "weight": rollout.weight,
        "seconds": seconds,
        "bake_s": settings.bake_s,
        "max_wait_s": settings.max_wait_s,
        "questions": {finding.question: finding.to_dict() for finding in findings},
    }
    note = note_on_quality(steps)
    if note and len(findings) < 3:
        numbers["questions"]["quality"] = {"question": "quality", "asked": False, "reason": note}
    action, reason = _judge(rollout, findings, settings=settings, seconds=seconds, note=note)
    return RolloutDecision(
        action, f"step {rollout.step + 1} of {len(rollout.steps)} at {_at(rollout)}: {reason}", numbers
    )


def next_weight(rollout: Rollout) -> float | None:
    """Return the share of the traffic after this step; None where a pass promotes."""
    following = rollout.steps[rollout.step + 1 :]
    return following[0] if following and following[0] < 1 else None


def after(rollout: Rollout, decision: RolloutDecision, *, evidence: Sequence[StepEvidence], now: datetime) -> Rollout:
    """Return the record once a decision is carried out, with what it rests on."""
    kept = {"steps": [step.to_dict() for step in evidence], "numbers": decision.numbers}
    rollout = replace(rollout, evidence=kept, reason=decision.reason)
    if decision.action == "advance":
        return replace(rollout, step=rollout.step + 1, step_started_at=now)
    if decision.action == "wait":
        return rollout
    return replace(rollout, status="promoted" if decision.action == "promote" else "aborted", ended_at=now)


def evidence_of(rollout: Rollout) -> list[StepEvidence]:
    """Return the evidence that a record holds, of the steps that were taken and the one it is at."""
    return [StepEvidence.from_dict(item) for item in rollout.evidence.get("steps", ())]


def _judge(
    rollout: Rollout, findings: Sequence[Finding], *, settings: RolloutSection, seconds: float, note: str
) -> tuple[Action, str]:
    """Return the action and its reason; ``note`` says why quality is not asked, or what failed where it was."""
    said = f"; {'quality' if len(findings) > 2 else 'quality not asked'}: {note}" if note else ""
    action, reason = _verdict(rollout, findings, settings=settings, seconds=seconds)
    if not said and len(findings) < 3 and action in {"promote", "advance"}:
        said = "; no labels"
    return action, f"{reason}{said}"


def _verdict(
    rollout: Rollout, findings: Sequence[Finding], *, settings: RolloutSection, seconds: float
) -> tuple[Action, str]:
    if harmful := [finding.harm for finding in findings if finding.harmful]:
        return "abort", "; ".join(harmful)
    if seconds < settings.bake_s:
        return "wait", f"{seconds:,.0f} of {settings.bake_s:,.0f} s"
    lacking = [finding for finding in findings if not finding.passed]
    over = seconds >= max(settings.bake_s, settings.max_wait_s)
    if over and any(finding.question != "quality" for finding in lacking):
        return "abort", f"no verdict after {seconds:,.0f} s: {_joined(finding.lack for finding in lacking)}"
    if lacking and not over:
        return "wait", f"no verdict after {seconds:,.0f} s: {_joined(finding.lack for finding in lacking)}"
    known = _joined(finding.bounds for finding in findings if finding.passed)
    reason = f"passed after {seconds:,.0f} s: {known}"
    if lacking:
        reason += f"; without a verdict on quality: {lacking[0].lack}"
    return ("promote" if next_weight(rollout) is None else "advance"), reason


def _settings(rollout: Rollout) -> RolloutSection:
    """Return what the rollout was started with; what another version of raymlops wrote beside is left out."""
    return RolloutSection.model_validate(
        {key: value for key, value in rollout.settings.items() if key in RolloutSection.model_fields}
    )


def _at(rollout: Rollout) -> str:
    return f"{100 * rollout.weight:g} percent"


def _joined(parts: Iterable[str]) -> str:
    return "; ".join(parts)
