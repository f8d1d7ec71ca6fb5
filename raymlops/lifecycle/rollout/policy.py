"""What a rollout does next: wait, advance a step, promote or abort. Pure: record, evidence and time in, decision out.

Owns the order and the times of steps. What the evidence shows is decided by ``significance``; counting, moving traffic
and writing the record happen elsewhere.

A step lasts at least ``bake_s``. It passes when errors, slow answers and, with labels, losses are significantly within
their margins. It aborts as soon as one of them is significantly worse than the champion's. A step without a verdict
after ``max_wait_s``, such as one with little traffic or with labels that arrive hours later, is held: the canary keeps
its share until there is a verdict, however late. With ``on_no_verdict: abort`` it ends there.

Quality belongs to the verdict where labels arrive for the model, or did in the days before: a step without labelled
requests of its own does not pass then, or every worse version would be promoted before the first label arrives.

Losses are read in the background and may be older than the decision. Harm is judged by what is known. Passing requires
losses that cover every request of the bake, or a log that is switched off. One that is still being read, or cannot be
read, is waited for as a verdict is, and for at least five minutes: nobody knows which labels are in it.

**The last step.** With all of the traffic on the new version there is nothing left to compare it with. So reaching 100
percent is the promotion, decided on the steps before: ``10, 50, 100`` bakes at 10 and at 50 percent and then flips the
route, with the old champion kept warm for a flip back. Steps that end below 100 promote when the last one has passed,
and ``100`` alone promotes at once.

A clock that is set back makes a step last longer, one that is set forward shorter; neither makes evidence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from raymlops.config.serve import RolloutSection
from raymlops.config.stored import read_stored
from raymlops.lifecycle.rollout.significance import StepEvidence, find, note_on_quality
from raymlops.records import Record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from raymlops.lifecycle.rollout.loss_reader import LossReport
    from raymlops.lifecycle.rollout.significance import Finding
    from raymlops.state.rollouts import Rollout

__all__ = [
    "RolloutDecision",
    "StepEvidence",
    "after",
    "baked_at",
    "decide",
    "evidence_of",
    "judges_quality",
    "next_weight",
]

LOG_WAIT_S = 300.0
"""Minimum wait after the bake for a log that is being read, however short ``max_wait_s`` is."""

Action = Literal["wait", "advance", "promote", "abort"]


@dataclass(frozen=True)
class RolloutDecision(Record):
    """What to do, why, and the numbers behind it."""

    action: Action
    reason: str
    numbers: dict[str, Any]


def decide(
    rollout: Rollout, evidence: Sequence[StepEvidence], *, now: datetime, losses: LossReport | None = None
) -> RolloutDecision:
    """Return what a rollout does next.

    ``evidence`` has one entry per step, the current one last; unknown steps may be empty (``StepEvidence(weight)``) or
    missing at the end. ``losses`` says how old the losses in it are; without it they are current.
    """
    if rollout.status != "running":
        return RolloutDecision("wait", f"it has ended: {rollout.status}", {})
    if rollout.weight >= 1:
        return RolloutDecision("promote", "no step below 100 percent, so nothing was compared", {})
    settings = _settings(rollout)
    steps = [*evidence[: rollout.step + 1]]
    steps += [StepEvidence(weight) for weight in rollout.steps[len(steps) : rollout.step + 1]]
    findings = find(steps, settings, labelled=losses is not None and losses.labelled)
    seconds = max(0.0, (now - rollout.step_started_at).total_seconds())
    numbers: dict[str, Any] = {
        "step": rollout.step,
        "weight": rollout.weight,
        "seconds": seconds,
        "bake_s": settings.bake_s,
        "max_wait_s": settings.max_wait_s,
        "questions": {finding.question: finding.to_dict() for finding in findings},
        "losses": None if losses is None else losses.to_dict(),
    }
    note = note_on_quality(steps)
    if note and len(findings) < 3:
        numbers["questions"]["quality"] = {"question": "quality", "asked": False, "reason": note}
    log = _Log() if losses is None else _log_of(losses, until=baked_at(rollout))
    action, reason = _verdict(rollout, findings, settings=settings, seconds=seconds, log=log)
    reason += _remark(log, note=note, judged=len(findings) > 2, passed=action in {"promote", "advance"})
    if losses is not None and losses.left_out:
        reason = f"{reason}; {losses.left_out}"
    return RolloutDecision(
        action,
        f"step {rollout.step + 1} of {len(rollout.steps)} at {100 * rollout.weight:g} percent: {reason}",
        numbers,
    )


def baked_at(rollout: Rollout) -> datetime:
    """Return the earliest time at which the current step may pass."""
    return rollout.step_started_at + timedelta(seconds=_settings(rollout).bake_s)


def judges_quality(rollout: Rollout) -> bool:
    """Return whether answers are compared with labels, if any arrive."""
    return _settings(rollout).quality_margin is not None


def next_weight(rollout: Rollout) -> float | None:
    """Return the share of the traffic after this step; None if passing promotes."""
    following = rollout.steps[rollout.step + 1 :]
    return following[0] if following and following[0] < 1 else None


def after(rollout: Rollout, decision: RolloutDecision, *, evidence: Sequence[StepEvidence], now: datetime) -> Rollout:
    """Return the record after a decision is carried out, with its evidence."""
    kept = {"steps": [step.to_dict() for step in evidence], "numbers": decision.numbers}
    rollout = replace(rollout, evidence=kept, reason=decision.reason)
    if decision.action == "advance":
        return replace(rollout, step=rollout.step + 1, step_started_at=now)
    if decision.action == "wait":
        return rollout
    return replace(rollout, status="promoted" if decision.action == "promote" else "aborted", ended_at=now)


def evidence_of(rollout: Rollout) -> list[StepEvidence]:
    """Return the evidence that a record holds, of past steps and the current one."""
    return [StepEvidence.from_dict(item) for item in rollout.evidence.get("steps", ())]


@dataclass(frozen=True)
class _Log:
    """What the losses lack for a step to pass."""

    lack: str = ""
    waits: bool = False
    """Whether the step waits for it."""


def _log_of(losses: LossReport, *, until: datetime) -> _Log:
    """Return what the losses lack to cover all requests before ``until``."""
    if losses.off:
        return _Log(losses.off)
    if losses.covers is not None and losses.covers >= until:
        return _Log()
    return _Log(losses.unknown or "the prediction log is being read for labels", waits=True)


def _remark(log: _Log, *, note: str, judged: bool, passed: bool) -> str:
    """Return why quality was not judged, or only in part, to follow the reason; empty otherwise."""
    if note:
        return f"; {'quality' if judged else 'quality not judged'}: {note}"
    if passed and log.lack:
        return f"; quality not judged{' for the newest answers' if judged else ''}: {log.lack}"
    return "; no labels" if passed and not judged else ""


def _verdict(
    rollout: Rollout, findings: Sequence[Finding], *, settings: RolloutSection, seconds: float, log: _Log
) -> tuple[Action, str]:
    if harmful := [finding.harm for finding in findings if finding.harmful]:
        return "abort", "; ".join(harmful)
    if seconds < settings.bake_s:
        return "wait", f"{seconds:,.0f} of {settings.bake_s:,.0f} s"
    if lacks := [*(finding.lack for finding in findings if not finding.passed), *([log.lack] if log.waits else [])]:
        reason = f"no verdict after {seconds:,.0f} s: {'; '.join(lacks)}"
        if seconds < max(settings.max_wait_s, settings.bake_s + (LOG_WAIT_S if log.waits else 0.0)):
            return "wait", reason
        return ("wait", f"held: {reason}") if settings.on_no_verdict == "hold" else ("abort", reason)
    known = "; ".join(finding.bounds for finding in findings)
    return ("promote" if next_weight(rollout) is None else "advance"), f"passed after {seconds:,.0f} s: {known}"


def _settings(rollout: Rollout) -> RolloutSection:
    """Return the settings the rollout was started with."""
    return read_stored(RolloutSection, rollout.settings)
