"""Decide whether a live model is to be retrained: by which trigger, with its numbers, or what that waits for. Pure.

A trigger counts from the promotion of what is live, or from the last retraining, whichever was later, and its evidence
has a key: what was tried on some evidence is not tried again before there is newer one. Nothing is decided while a
retraining is open, a rollout runs, the model is frozen or an incident says that what it is served is broken; within
the cool-down of the last retraining; and beyond the budget.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raymlops.display import some_of
from raymlops.monitor.skill.verdict import LEVEL, above
from raymlops.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from raymlops.config.retrain import RetrainSection
    from raymlops.monitor.skill.expected import Window
    from raymlops.monitor.skill.verdict import Verdict
    from raymlops.state.freezes import Freeze
    from raymlops.state.loop import Retraining, Trigger

Kind = Literal["not live", "off", "open", "frozen", "incident", "rollout", "cool-down", "budget", "no trigger"]
_COLUMNS = 5


@dataclass(frozen=True)
class Alarm:
    """A window of a model's inputs that is an alarm, and the columns that led to it."""

    stop: datetime
    columns: Mapping[str, float | None]
    """With how much the output depends on each, from 0 to 1; None where that is not known."""


@dataclass(frozen=True)
class Facts:
    """What is known of a model when it is decided."""

    name: str
    champion: int | None = None
    champion_run_id: str = ""
    promoted_at: datetime | None = None
    verdict: Verdict | None = None
    """On its quality since the promotion."""
    windows: tuple[Window, ...] = ()
    """Its labelled windows since then, oldest first."""
    judged_until: datetime | None = None
    """End of the newest window that was judged."""
    labelled_rows: int = 0
    """Since the promotion."""
    alarms: tuple[Alarm, ...] = ()
    """Of its inputs since the promotion, oldest first, without those that a person said are normal."""
    incidents: tuple[str, ...] = ()
    """Open ones that say that what it is served is broken: beyond a bound, or silent. A line each."""
    rollout: str = ""
    """The rollout that runs, in a line."""
    freeze: Freeze | None = None
    retrainings: tuple[Retraining, ...] = ()
    """Those for the champion, those within the budget's days, and the newest two at least; newest first."""
    number: int = 0
    """How many retrainings of the model there were."""


@dataclass(frozen=True)
class Decision(Record):
    """A model is to be retrained."""

    trigger: Trigger
    evidence: str
    evidence_at: datetime
    why: str
    reasons: dict[str, Any] = field(default_factory=dict)
    """The numbers."""


@dataclass(frozen=True)
class Waiting(Record):
    """It is not, now."""

    kind: Kind
    why: str
    until: datetime | None = None
    """When that is over by itself, where that is known."""

    def text(self) -> str:
        """Return it as a line."""
        return self.why


def decide(facts: Facts, policy: RetrainSection, *, now: datetime) -> Decision | Waiting:
    """Return whether a model is to be retrained now by what was configured, and why."""
    if (gone := _not_live(facts)) is not None:
        return gone
    if not policy.triggers.any:
        return Waiting("off", "retrain.triggers has none: a person decides, by raymlops retrain")
    found, quiet = None, []
    for each in _triggers(facts, policy, now=now):
        if isinstance(each, Decision) and (tried := _tried(facts, each)) is not None:
            quiet.append(f"{each.why}, and the same led to {tried.text()}; newer evidence is waited for")
        elif isinstance(each, Decision):
            found = found or each
        else:
            quiet.append(each)
    blocked = _blocked(facts, now=now) or _spent(facts, policy, now=now)
    if blocked is not None and (found is not None or blocked.kind in {"open", "frozen"}):
        told = blocked.why if found is None else f"{blocked.why}; then: {found.why}"
        return Waiting(blocked.kind, told, blocked.until)
    return found or Waiting("no trigger", "; ".join(quiet))


def decide_by_person(facts: Facts, *, now: datetime, why: str, actor: str) -> Decision | Waiting:
    """Return whether a model is retrained because a person says so: neither cool-down, budget nor incident holds it."""
    blocked = _not_live(facts) or _blocked(facts, now=now)
    if blocked is not None and blocked.kind != "incident":
        return blocked
    notes = {"during": list(facts.incidents)} if facts.incidents else {}
    return Decision("person", f"{actor} at {now.isoformat()}", now, why, {**_counted(facts), **notes})


def last_of(facts: Facts) -> Retraining | None:
    """Return the newest retraining since the promotion of what is live."""
    newest = facts.retrainings[0] if facts.retrainings else None
    if newest is None or (facts.promoted_at is not None and newest.made_at < facts.promoted_at):
        return None
    return newest


def _not_live(facts: Facts) -> Waiting | None:
    if facts.champion is not None and facts.promoted_at is not None:
        return None
    return Waiting("not live", f"no version of {facts.name} is live")


def _blocked(facts: Facts, *, now: datetime) -> Waiting | None:
    """Return what has to end first, whoever asks."""
    if (open_ := next((one for one in facts.retrainings if one.is_open), None)) is not None:
        return Waiting("open", f"one at a time: {open_.text()}")
    if facts.freeze is not None and facts.freeze.holds(now):
        return Waiting("frozen", facts.freeze.text(), facts.freeze.until)
    if facts.rollout:
        return Waiting("rollout", f"one at a time: {facts.rollout}")
    if facts.incidents:
        return Waiting("incident", f"nothing during an incident: {some_of(facts.incidents, 2)}")
    return None


def _spent(facts: Facts, policy: RetrainSection, *, now: datetime) -> Waiting | None:
    """Return what the cool-down or the budget waits for."""
    ends = [one.ended_at for one in facts.retrainings if one.ended_at is not None]
    if ends and (cool := max(ends) + timedelta(hours=policy.cool_down_h)) > now:
        told = f"cool-down of {policy.cool_down_h:g} h until {_time(cool)} after the last retraining"
        return Waiting("cool-down", told, cool)
    span = timedelta(days=policy.budget_days)
    made = sorted((one.made_at for one in facts.retrainings if one.made_at > now - span), reverse=True)
    if len(made) < policy.budget:
        return None
    free = made[policy.budget - 1] + span
    told = f"{len(made)} retrainings within {policy.budget_days:g} days, and {policy.budget} are the budget"
    return Waiting("budget", f"{told}: used until {_time(free)}", free)


def _tried(facts: Facts, found: Decision) -> Retraining | None:
    same = (one for one in facts.retrainings if (one.trigger, one.evidence) == (found.trigger, found.evidence))
    return next(same, None)


def _triggers(facts: Facts, policy: RetrainSection, *, now: datetime) -> Iterator[Decision | str]:
    """Yield what each configured trigger says, the most telling first: a decision, or what it waits for."""
    triggers = policy.triggers
    if triggers.skill:
        yield _by_skill(facts)
    if triggers.min_skill is not None:
        yield _by_bound(facts, triggers.min_skill)
    if triggers.drift_alarms is not None:
        yield _by_drift(facts, triggers.drift_alarms, triggers.min_influence)
    if triggers.new_labels is not None:
        yield _by_labels(facts, triggers.new_labels, now=now)
    if triggers.every_days is not None:
        yield _by_schedule(facts, triggers.every_days, now=now)


def _by_skill(facts: Facts) -> Decision | str:
    verdict = facts.verdict
    if verdict is None or facts.judged_until is None:
        return "skill: no window was judged yet"
    if verdict.outcome != "worse":
        return f"skill: {verdict.outcome} ({verdict.reason})"
    numbers = {"lost": verdict.lost, "low": verdict.low, "high": verdict.high, "evidence": verdict.evidence}
    return _decision(facts, "skill", facts.judged_until, f"skill: {verdict.reason}", **numbers)


def _by_bound(facts: Facts, bound: float) -> Decision | str:
    if not facts.windows or facts.judged_until is None:
        return "min_skill: no window was judged yet"
    allowed = np.array([(1 - bound) * one.reference for one in facts.windows])
    is_below, evidence = above([one.losses for one in facts.windows], allowed)
    skill = facts.windows[-1].skill
    told = f"min_skill: {skill:.3f} in the last window, {bound:g} is the bound"
    if not is_below:
        return f"{told}; that it is below is shown {evidence:,.0f} to 1, {1 / LEVEL:,.0f} are needed"
    return _decision(facts, "min_skill", facts.judged_until, told, skill=skill, bound=bound, evidence=evidence)


def _by_drift(facts: Facts, wanted: int, least: float) -> Decision | str:
    since = _since(facts)
    counted = []
    for alarm in facts.alarms:
        # Where it is not known how much the output depends on a column, it may be all of it.
        columns = [name for name, influence in alarm.columns.items() if influence is None or influence >= least]
        if columns and alarm.stop > since:
            counted.append((alarm.stop, columns))
    told = f"drift_alarms: {len(counted)} of {wanted} windows since {_time(since)} are an alarm for a column"
    told = f"{told} on which the output depends by at least {least:g}"
    if len(counted) < wanted:
        return told
    names = list(dict.fromkeys(name for _, columns in counted for name in columns))
    numbers = {"alarms": len(counted), "columns": names[:_COLUMNS]}
    return _decision(facts, "drift", counted[-1][0], f"{told}: {some_of(names, _COLUMNS)}", **numbers)


def _by_labels(facts: Facts, wanted: int, *, now: datetime) -> Decision | str:
    last = last_of(facts)
    before = 0 if last is None else int(last.reasons.get("labelled_rows", 0))
    new = facts.labelled_rows - before
    told = f"new_labels: {new:,} of {wanted:,} rows got a label since {_time(_since(facts))}"
    if new < wanted:
        return told
    at = facts.judged_until or now
    found = _decision(facts, "labels", at, told, new_labels=new)
    return Decision("labels", f"version {facts.champion}, {facts.labelled_rows} labelled rows", at, told, found.reasons)


def _by_schedule(facts: Facts, days: float, *, now: datetime) -> Decision | str:
    since = _since(facts)
    due = since + timedelta(days=days)
    if now < due:
        return f"every_days: due at {_time(due)}"
    return _decision(facts, "schedule", due, f"every_days: {days:g} days since {_time(since)}", days=days)


def _decision(facts: Facts, trigger: Trigger, at: datetime, why: str, **numbers: Any) -> Decision:
    evidence = f"version {facts.champion} until {at.isoformat()}"
    return Decision(trigger, evidence, at, why, {**_counted(facts), **numbers})


def _counted(facts: Facts) -> dict[str, Any]:
    """Return what the next decision counts from."""
    return {"labelled_rows": facts.labelled_rows}


def _since(facts: Facts) -> datetime:
    """Return from when on triggers count."""
    assert facts.promoted_at is not None
    last = last_of(facts)
    return facts.promoted_at if last is None else last.made_at


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
