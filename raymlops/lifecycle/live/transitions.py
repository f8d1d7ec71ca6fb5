"""What a verb makes of a model, and what becomes of a version that comes up. Pure: desired state in, desired state out.

A version that is not up yet is desired beside what is live, and its transition says what it gets once it is up. Then it
is ``reached``; a version that does not come up has ``failed``, and what it replaced is desired again. A newer request
for the route supersedes an older one. ``lineup`` says who becomes what.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from raymlops.config.serve import RolloutSection
from raymlops.config.stored import read_stored
from raymlops.errors import RaymlopsError, RefusedError
from raymlops.lifecycle.live.held import held
from raymlops.lifecycle.live.lineup import (
    BEGUN,
    BESIDE,
    as_asked,
    beside,
    canaries_of,
    champion_of,
    idle_of,
    of_model,
    with_canary,
    with_champion,
    with_settings,
    with_shadow,
    without,
    without_traffic,
)
from raymlops.lifecycle.live.rollouts import begin, refuse_running, settled
from raymlops.state.store import Change, Deployment, Model
from raymlops.state.transitions import Transition

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

PROMOTED = "rollout.promote"
"""Action by which a rollout makes its version champion."""
ROLLBACK = "rollback"
ROUTE = {"role": "champion"}
AGAIN = "Run the same command again."


@dataclass(frozen=True)
class Request:
    """A version that is to come up, and who asked for it."""

    action: str
    why: str
    actor: str
    now: datetime
    """By the clock of the database, as all times here."""
    timeout_s: float
    """How long it may take to come up, from when the reconciler starts it."""
    hurry: bool = False
    replaces: bool = False
    """Whether the champion ends before the version starts, since there is no room for both (``serve.update``)."""


def bring(
    model: Model,
    new: Deployment,
    *,
    goal: dict[str, Any],
    request: Request,
    up: bool,
    leaving: Collection[int] = (),
    standing: Sequence[Deployment] | None = None,
) -> Change:
    """Return a model of which a version gets its goal: at once if it is ``up``, or else once it has come up.

    ``leaving`` are versions that are removed first, since there is no room beside them. ``standing`` are those that
    were desired when that was decided, by default now: what comes back by superseding another one has no room either.

    Where the request ``replaces``, the versions that were desired stay so, but do not run until this one is up, and
    come back by themselves if it does not come up.

    Raises:
        RefusedError: there is no room beside the champion, or it is being replaced.
    """
    action, why, now, version = request.action, request.why, request.now, new.version
    stood = {item.version for item in (model.deployments if standing is None else standing)}
    takes_route = goal.get("role") == "champion"
    if not takes_route:
        refuse_beside(model, version, request=request)
    for one in model.coming if takes_route else ():
        if (request.replaces or one.goal.get("role") == "champion") and one.version != version:
            model = taken_back(model, one, "superseded", f"{action} of version {version}")
    before, was = model.deployments, model.item(version)
    old = champion_of(before)
    # Whoever took the route, or a share, or is on its way meanwhile, makes no room.
    on_their_way = {one.version for one in model.coming}
    idle = {item.version for item in idle_of(before)} - on_their_way - {version}
    leaving = {one for one in idle if one in leaving or one not in stood}
    target = wanted(before, new, goal)
    item = next(one for one in target if one.version == version)
    earlier = next((one for one in model.coming if one.version == version), None)
    if up and was is not None and was.serve == item.serve:
        if earlier is not None:  # what it came up for before must not be given to it later
            model = with_transition(
                model, replace(earlier, status="superseded", reason=f"{action} of version {version}")
            )
        watched = tuple(with_settings(one, item) if one is was else one for one in model.deployments)
        return _reached(replace(model, deployments=watched), version, goal, action, why, now=now)
    if takes_route and request.replaces and old is not None and old.version != version:
        goal, leaving = {**goal, "replaces": old.version}, set()
    first = tuple(beside(without(before, leaving), item if was is None else with_settings(was, item)))
    final = first == tuple(without(target, leaving)) and not _shares(goal)
    if final:
        began_as, goal = action, {}
    else:
        began_as = BESIDE if _shares(goal) else f"{action}{BEGUN}"
    if earlier is not None and (earlier.began_as, earlier.goal, first) == (began_as, goal, before):
        return Change(model, action, why)  # it is on its way
    restores = earlier.restores if earlier is not None else [] if was is None else [was.to_dict()]
    transition = Transition(
        id=uuid.uuid4().hex[:12],
        name=model.name,
        version=version,
        goal=goal,
        action=action,
        began_as=began_as,
        why=why,
        actor=request.actor,
        began_at=now,
        timeout_s=request.timeout_s,
        hurry=request.hurry,
        restores=[*restores, *(one.to_dict() for one in before if one.version in leaving)],
    )
    model = with_settled_rollout(with_transition(replace(model, deployments=first), transition), now=now, by=action)
    return Change(model, began_as, why if final else f"{why}: first it comes up")


def refuse_beside(model: Model, version: int, *, request: Request) -> None:
    """Refuse to bring a version up beside a champion that has the place to itself.

    Raises:
        RefusedError: naming the setting, or the version that replaces the champion now.
    """
    for one in model.coming:
        if "replaces" in one.goal:  # no new settings for the champion either: it is gone once the other one is up
            raise RefusedError(f"version {one.version} of {model.name} is replacing the champion", hint=AGAIN)
    champion = champion_of(model.deployments)
    if champion is None or champion.version == version:
        return
    if request.replaces:
        raise RefusedError(
            f"version {version} of {model.name} cannot run beside version {champion.version}: serve.update is replace",
            hint="Deploy it without --beside, --canary, --steps and --shadow, or set serve.update: beside if there is "
            "room for two.",
        )


def reached(model: Model, transition_id: str, *, now: datetime) -> Change:
    """Return a model of which a version is up, and has what it came up for; unchanged if that was superseded.

    What the loop brings up gets nothing while something holds the loop.
    """
    transition = model.transition(transition_id)
    if transition is None or transition.status != "running":
        return Change(model, "", "")
    begun = model.rollout_why if transition.action == PROMOTED else transition.why
    try:
        if why := held(model, begun, now=now):  # it is up, and its rollout goes on, or begins, after that
            up = replace(transition, status="done", reason=why)
            return Change(with_transition(model, up), transition.action, why)
        change = _reached(model, transition.version, transition.goal, transition.action, transition.why, now=now)
    except RaymlopsError as error:  # the line-up has changed meanwhile
        return failed(model, transition_id, error.message, now=now)
    done = replace(transition, status="done")
    return replace(change, model=with_transition(change.model, done))


def failed(model: Model, transition_id: str, reason: str, *, now: datetime) -> Change:
    """Return a model without a version that does not come up; unchanged if it was superseded."""
    transition = model.transition(transition_id)
    if transition is None or transition.status != "running":
        return Change(model, "", "")
    model = taken_back(model, transition, "failed", reason[:2000])
    lost: dict[int, str | None] = {}
    rollout = model.rollout
    if rollout is not None and transition.action == PROMOTED:
        why = f"version {transition.version} did not come up as champion: {reason}"[:2000]
        model = replace(
            model,
            deployments=tuple(without_traffic(model.deployments, {rollout.version})),
            rollout=replace(rollout, status="aborted", ended_at=now, reason=why),
        )
        lost = {rollout.version: why}
    return Change(model, f"{transition.began_as}.undone", f"{transition.began_as} failed: {reason}"[:2000], lost)


def wanted(before: Sequence[Deployment], new: Deployment, goal: dict[str, Any]) -> list[Deployment]:
    """Return the line-up with a version in the role of its goal, and with its settings."""
    champion = champion_of(before)
    if goal.get("role") == "champion" or (champion is not None and champion.version == new.version):
        return with_champion(before, new, configured=bool(goal.get("configured")))
    return beside(before, as_asked(before, new))


def unshared(model: Model, version: int, goal: dict[str, Any], *, action: str, why: str) -> Change:
    """Return a model of which a version lost the shares that its goal sets to 0; unchanged if it is not up.

    A version that comes up for them comes up for what else it gets, or is taken back if that is nothing.

    Raises:
        RefusedError: its share is a rollout's.
    """
    gone = [key for key in ("weight", "shadow") if goal.get(key) is not None]
    gone += ["rollout"] if "weight" in gone else []
    for one in model.coming:
        if one.version == version and _shares(one.goal):
            rest = {**one.goal, **dict.fromkeys(gone)}
            if rest.get("weight") or rest.get("shadow"):
                model = with_transition(model, replace(one, goal=rest))
            else:
                model = taken_back(model, one, "superseded", why)
    if model.item(version) is None:
        return Change(model, action, why)
    return Change(_shared(model, version, goal), action, why)


def _reached(model: Model, version: int, goal: dict[str, Any], action: str, why: str, *, now: datetime) -> Change:
    item = model.item(version)
    if item is None:
        raise RefusedError(f"version {version} of {model.name} was taken down while it came up", hint=AGAIN)
    if goal.get("role") == "champion":
        target = with_champion(model.deployments, item, configured=bool(goal.get("configured")))
        if "replaces" in goal:
            target = [one for one in target if one.role == "champion"]
        by = None if action == PROMOTED else action
        withdraws: dict[int, str | None] = {version: None}
        old = champion_of(model.deployments)
        if action == ROLLBACK and old is not None and old.version != version:
            withdraws[old.version] = f"rolled back {why}"
        model = with_settled_rollout(replace(model, deployments=tuple(target)), now=now, by=by)
        return Change(model, action, why, withdraws)
    if _shares(goal):
        model = _shared(model, version, goal, now=now)
    return Change(model, action, why)


def _shares(goal: dict[str, Any]) -> bool:
    return goal.get("weight") is not None or goal.get("shadow") is not None


def _shared(model: Model, version: int, goal: dict[str, Any], *, now: datetime | None = None) -> Model:
    """Return a model of which a version has the shares of its goal, and is rolled out from there if that says so.

    Raises:
        RefusedError: another version is champion by now, a rollout is running, or shares would exceed 100%.
    """
    name, champion = model.name, champion_of(model.deployments)
    if champion is None or champion.version != goal["champion"]:
        raise RefusedError(f"version {goal['champion']} of {name} is no longer live", hint=AGAIN)
    wanted, rollout = list(model.deployments), None
    if (weight := goal.get("weight")) is not None:
        refuse_running(model)
        if now is not None and goal.get("rollout") is not None:
            others = [item.version for item in canaries_of(wanted) if item.version != version]
            if others:
                raise RefusedError(
                    f"version {others[0]} of {name} has a share of the traffic, and a rollout compares two versions",
                    hint="raymlops rollback takes the share away.",
                )
            settings = read_stored(RolloutSection, goal["rollout"])
            rollout = begin(
                rollout_id=uuid.uuid4().hex[:12],
                name=name,
                version=version,
                champion=champion.version,
                settings=settings,
                now=now,
            )
        wanted = with_canary(wanted, version, weight=weight)
    if (shadow := goal.get("shadow")) is not None:
        wanted = with_shadow(wanted, version, share=shadow)
    item = model.item(version)
    if item is not None and now is not None:
        wanted = [of_model(one, item, auth=champion.serve.get("auth")) for one in wanted]
    return replace(model, deployments=tuple(wanted), rollout=rollout or model.rollout)


def with_settled_rollout(model: Model, *, now: datetime, by: str | None) -> Model:
    """Return a model whose rollout has ended if its deployments ended it."""
    if model.rollout is None or (ended := settled(model.rollout, model.deployments, now=now, by=by)) is None:
        return model
    return replace(model, rollout=ended)


def taken_back(model: Model, transition: Transition, status: Any, reason: str) -> Model:
    """Return a model without a version on its way; what made room for it, and its earlier settings, are restored."""
    model = with_transition(model, replace(transition, status=status, reason=reason))
    restored = [Deployment.from_dict(item) for item in transition.restores]
    was = next((one for one in restored if one.version == transition.version), None)
    item = model.item(transition.version)
    items = list(model.deployments)
    if item is not None and was is not None:
        items = [with_settings(one, was) if one is item else one for one in items]
    elif item is not None and item.role != "champion" and not item.weight and not item.shadow:
        items.remove(item)
    standing, champion = {one.version for one in items} | {transition.version}, champion_of(items)
    for one in restored:
        if one.version not in standing:
            items.append(of_model(one, champion, auth=champion.serve.get("auth")) if champion is not None else one)
    return replace(model, deployments=tuple(sorted(items, key=lambda one: one.version)))


def with_transition(model: Model, transition: Transition) -> Model:
    """Return a model with a transition in place of the one of its version."""
    others = tuple(one for one in model.transitions if one.version != transition.version)
    return replace(model, transitions=(*others, transition))
