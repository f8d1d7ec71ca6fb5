"""What a verb takes back: what is on its way, a share of the traffic, the route, a version, or a whole model. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from raymlops.errors import NotFoundError, RefusedError
from raymlops.lifecycle.live.lineup import (
    canaries_of,
    champion_of,
    of_model,
    previous_champion,
    without,
    without_traffic,
)
from raymlops.lifecycle.live.rollouts import refuse_running
from raymlops.lifecycle.live.transitions import (
    PROMOTED,
    ROLLBACK,
    ROUTE,
    bring,
    taken_back,
    with_settled_rollout,
    with_transition,
)
from raymlops.state.store import Change

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from datetime import datetime

    from raymlops.lifecycle.live.transitions import Request
    from raymlops.state.audit import AuditEvent
    from raymlops.state.store import Deployment, Model
    from raymlops.state.transitions import Transition


def in_question(model: Model) -> list[int]:
    """Return the versions that a rollback takes back instead of the route: rolled out, on their way, with a share."""
    rolled_out = [] if model.rollout is None else [model.rollout.version]
    champion = champion_of(model.deployments)
    pending = [one for one in model.coming if one.action != ROLLBACK]
    coming = [one.version for one in pending if one.goal.get("weight") or _moves_route(one, champion)]
    return [*rolled_out, *coming, *(item.version for item in canaries_of(model.deployments))]


def roll_back(
    model: Model,
    changes: Iterable[AuditEvent],
    *,
    request: Request,
    up: Callable[[Deployment], bool],
    seen: Collection[int] = (),
    champion: int | None = None,
    leaving: Collection[int] = (),
    gone: Collection[int] = (),
) -> Change:
    """Return a model whose last change is reverted: a version on its way, a share of the traffic, or the route.

    ``seen`` are the versions that were in question when it was requested, and ``champion`` was live then: where another
    process took them back since, the champion stays, unless it is one of them. Versions that are ``gone`` are passed
    over.

    Raises:
        NotFoundError: the model is not served, or no version was champion before.
    """
    if any(one.action == request.action for one in model.coming):
        return Change(model, request.action, request.why)  # it is on its way back
    left = champion_of(model.deployments)
    if pending := route_takers(model):
        for one in pending:
            model = taken_back(model, one, "superseded", "rolled back")
        versions = ", ".join(str(one.version) for one in pending)
        why = f"version {versions}, which was on its way to the route, is taken back"
        new = {one.version for one in pending} - ({left.version} if left is not None else set())
        return Change(model, request.action, why, dict.fromkeys(new, why))
    if (change := aborted(model, why="rolled back", now=request.now, action=f"{request.action}.canary")) is not None:
        return change
    if left is not None and left.version not in seen and (seen or champion not in {None, left.version}):
        return Change(model, request.action, request.why)
    target = previous_champion(model.deployments, changes, gone)
    if left is not None:
        target = of_model(target, left, auth=left.serve.get("auth"))
    why = f"from version {left.version if left else None} to version {target.version}"
    why += f", past {', '.join(map(str, sorted(gone)))} without a bundle" if gone else ""
    request = replace(request, why=why, hurry=True, replaces=left is not None and left.replaces)
    return bring(model, target, goal=ROUTE, request=request, up=up(target), leaving=leaving)


def route_takers(model: Model) -> list[Transition]:
    """Return what comes up for the route, by a verb, or as the champion with other settings; not by a rollback."""
    champion = champion_of(model.deployments)
    verbs = [one for one in model.coming if one.action not in {PROMOTED, ROLLBACK}]
    return [one for one in verbs if _moves_route(one, champion)]


def _moves_route(transition: Transition, champion: Deployment | None) -> bool:
    """Return whether a version comes up for the route, or as the champion with other settings."""
    renewed = champion is not None and transition.version == champion.version
    return renewed or transition.goal.get("role") == "champion"


def aborted(model: Model, *, why: str, now: datetime, action: str) -> Change | None:
    """Return a model without canaries' shares and without a rollout; None if it has neither."""
    canaries, rollout = canaries_of(model.deployments), model.rollout
    pending = [one for one in model.coming if one.goal.get("weight") or one.action == PROMOTED]
    if not canaries and rollout is None and not pending:
        return None
    for one in pending:
        model = taken_back(model, one, "superseded", why)
    said = [f"version {item.version} answered {100 * item.weight:g}%" for item in canaries]
    said += [f"version {one.version} was coming up for its share" for one in pending if one.action != PROMOTED]
    model = replace(model, deployments=tuple(without_traffic(model.deployments)))
    if rollout is not None:
        said.append(f"rollout {rollout.id} of version {rollout.version} ends")
        model = replace(model, rollout=replace(rollout, status="stopped", ended_at=now, reason=why))
    lost = {item.version for item in canaries} | ({rollout.version} if rollout is not None else set())
    why = f"{why}: {', '.join(said)}"
    return Change(model, action, why, dict.fromkeys(lost, why))


def superseded(model: Model, *, action: str, why: str) -> Change:
    """Return a model of which no version is on its way any more."""
    for one in model.coming:
        model = taken_back(model, one, "superseded", why)
    return Change(model, action, why)


def removed(model: Model, *, now: datetime, why: str) -> Change:
    """Return a model of which nothing is desired any more."""
    for one in model.coming:
        model = with_transition(model, replace(one, status="superseded", reason="the model was removed"))
    return Change(with_settled_rollout(replace(model, deployments=()), now=now, by="remove"), "remove", why)


def version_removed(model: Model, version: int, *, why: str) -> Change:
    """Return a model without one version beside its champion.

    Raises:
        NotFoundError: it is not up.
        RefusedError: it is the champion, or is being rolled out.
    """
    item = model.item(version)
    if item is None:
        up = ", ".join(f"{one.version} ({one.role})" for one in model.deployments) or "none"
        raise NotFoundError(f"version {version} of {model.name} is not up; versions that are: {up}")
    if item.role == "champion":
        raise RefusedError(
            f"version {version} of {model.name} is the champion, which answers the requests",
            hint="Make another version live first (raymlops rollback or deploy), or take the whole model down: "
            "--remove without --version.",
        )
    if model.rollout is not None and model.rollout.version == version:
        refuse_running(model)
    for one in model.coming:
        if one.version == version:
            model = taken_back(model, one, "superseded", "the version was removed")
    return Change(replace(model, deployments=tuple(without(model.deployments, {version}))), "remove.version", why)
