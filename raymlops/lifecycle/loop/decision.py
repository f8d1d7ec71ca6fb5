"""Decide on a live model, and write what was decided with its message and audit event.

Owns what each autonomy makes of a decision: observed, proposed, or begun. Whoever comes second, or decided on an
outdated reading, writes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from raymlops.errors import RefusedError
from raymlops.lifecycle.live.each_model import EachModel
from raymlops.lifecycle.live.lineup import champion_of, retrained
from raymlops.lifecycle.loop.facts import facts_of
from raymlops.lifecycle.loop.messages import message_about
from raymlops.lifecycle.quality.facts import quality_facts
from raymlops.monitor.retraining import Decision, Waiting, decide, decide_by_person
from raymlops.state.engine import this_user
from raymlops.state.loop import Retraining, advance, begin, retraining_id, retraining_of, retrainings_of

if TYPE_CHECKING:
    from datetime import datetime

    from raymlops.config.retrain import RetrainSection
    from raymlops.lifecycle.loop.facts import Quality
    from raymlops.monitor.retraining import Facts
    from raymlops.state.loop import Stage
    from raymlops.state.store import State


def decide_due(
    state: State, name: str, *, now: datetime, actor: str | None = None, quality: Quality = quality_facts
) -> Retraining | Waiting:
    """Return the retraining that is decided on now, which is written, or what the loop waits for.

    A proposal about a version that is live no more is stopped first.

    Raises:
        StorageError, UnreachableError: the state cannot be used; nothing was changed.
    """
    actor = actor or f"controller of {this_user()}"
    champion = champion_of(state.deployments(name))
    facts = facts_of(state, name, now=now, quality=quality)
    if _retire(state, facts, now=now, actor=actor):
        facts = facts_of(state, name, now=now, quality=quality)
    if champion is None:
        return Waiting("not live", f"no version of {name} is live")
    policy = retrained(champion)
    found = decide(facts, policy, now=now)
    if isinstance(found, Waiting):
        return found
    stage: Stage = "proposed" if policy.autonomy == "propose" else "decided"
    new = retraining(state, facts, found, policy, stage=stage, now=now, actor=actor)
    if policy.autonomy == "observe":
        new = replace(new, ended_at=now, note="retrain.autonomy is observe: nothing runs")
    return _written(state, facts, new, now=now)


def retrain_by_person(
    state: State, name: str, *, now: datetime, why: str, actor: str, quality: Quality = quality_facts
) -> Retraining:
    """Begin a retraining because a person says so: that is the decision and its acceptance, whatever the autonomy is.

    Raises:
        RefusedError: no version of the model is live, it is frozen, or a rollout or another retraining of it runs.
        StorageError, UnreachableError: the state cannot be used; nothing was changed.
    """
    champion = champion_of(state.deployments(name))
    facts = facts_of(state, name, now=now, quality=quality)
    found = decide_by_person(facts, now=now, why=why, actor=actor)
    if isinstance(found, Waiting) or champion is None:
        raise RefusedError(
            f"{name} is not retrained now: {found.why}", hint=f"raymlops status {name} says what it waits for."
        )
    new = retraining(state, facts, found, retrained(champion), stage="checking", now=now, actor=actor)
    written = _written(state, facts, new, now=now)
    if isinstance(written, Waiting):
        raise RefusedError(f"{name} is not retrained now: {written.why}", hint="Run the same command again.")
    return written


def retraining(
    state: State, facts: Facts, found: Decision, policy: RetrainSection, *, stage: Stage, now: datetime, actor: str
) -> Retraining:
    """Return the retraining that a decision leads to."""
    assert facts.champion is not None
    return Retraining(
        id=retraining_id(state.owner().id, facts.name, found.trigger, found.evidence),
        name=facts.name,
        champion=facts.champion,
        champion_run_id=facts.champion_run_id,
        trigger=found.trigger,
        evidence=found.evidence,
        evidence_at=found.evidence_at,
        why=found.why,
        settings=policy.model_dump(mode="json"),
        actor=actor,
        stage=stage,
        made_at=now,
        stage_at=now,
        reasons=found.reasons,
    )


def _written(state: State, facts: Facts, new: Retraining, *, now: datetime) -> Retraining | Waiting:
    try:
        written = begin(state, new, known=facts.number, message=message_about(new, now=now))
    except RefusedError as error:  # frozen, or begun by another one, since it was decided
        return Waiting("open", error.message)
    return retraining_of(state, new.id) if written else Waiting("open", "another controller decided meanwhile")


def _retire(state: State, facts: Facts, *, now: datetime, actor: str) -> bool:
    """Stop a proposal about a version that is not live any more; return whether there was one."""
    proposal = next((one for one in facts.retrainings if one.is_open and one.stage == "proposed"), None)
    if proposal is None or proposal.champion == facts.champion:
        return False
    live = "no version is" if facts.champion is None else f"version {facts.champion} is"
    after = proposal.at("stopped", now=now, note=f"{live} live now")
    message = message_about(after, now=now)
    return advance(state, proposal, after, why=after.note, message=message, actor=actor) is not None


class Decisions:
    """Decide on every live model. Called once an hour, after its windows were judged."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._actor = f"controller of {this_user()}"
        self._each = EachModel(state, undone="it was not decided whether to retrain it", actor=self._actor)

    def __call__(self, now: datetime) -> None:
        """Decide on what is due; record what fails for a model, and continue with the others."""

        def decided(name: str, _hurry: object) -> bool:
            decide_due(self._state, name, now=now, actor=self._actor)
            return True

        names = {item.name for item in self._state.deployments()}
        self._each(names | {one.name for one in retrainings_of(self._state, open_only=True)}, decided)
