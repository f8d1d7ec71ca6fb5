"""The next step from what Serve runs to what is desired. Pure: desired state, Serve's details and time in, a step out.

Decides when a version that comes up is ready, when it has failed, and when a failing application is
restarted. One step at a time: who takes it reads both sides again before the next.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from raymlops.lifecycle.live.builds import builds, held_by, withdraws, without_builds
from raymlops.serving.control.converge import (
    BROKEN,
    broken,
    holder_of,
    lacking,
    needed_replicas,
    next_applications,
    takes_requests,
)
from raymlops.serving.control.details import (
    configs,
    differing,
    message_of,
    running_replicas,
    settled,
    status_of,
    unscheduled,
    without_place,
)
from raymlops.serving.control.ownership import mark_of, model_of
from raymlops.serving.names import app_name
from raymlops.state.conditions import Condition

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from datetime import datetime

    from raymlops.serving.control.plan import Plan
    from raymlops.state.store import Deployment, Model
    from raymlops.state.transitions import Transition

SCALE_WAIT_S = 20.0
"""How long a flip waits for the new champion to have as many replicas as the old one; then it flips anyway."""
RETRY_S = (5.0, 300.0)
"""Shortest and longest pause before a failing application is restarted; it doubles."""


PENDING_S = 5.0
"""How long a replica may be on no node before it is asked who holds the resources."""
NODE_S = 900.0
"""How long an autoscaler may take to add the node of a version's first replica, from when the version began."""
NO_ROOM = "\na replica waits for room, which is held by:"


@dataclass(frozen=True)
class Reach:
    """A version is up, and gets what it came up for."""

    transition: Transition

    def __str__(self) -> str:
        return f"version {self.transition.version} of {self.transition.name} is up"


@dataclass(frozen=True)
class Fail:
    """A version does not come up."""

    transition: Transition
    reason: str

    def __str__(self) -> str:
        return f"version {self.transition.version} of {self.transition.name} fails: {self.reason}"


@dataclass(frozen=True)
class Drop:
    """An application that failed is deleted, so that it restarts when it is sent again."""

    name: str

    def __str__(self) -> str:
        return f"ends {self.name}"


@dataclass(frozen=True)
class Send:
    """Our applications differ from what Serve should run next."""

    applications: dict[str, dict[str, Any]]

    def __str__(self) -> str:
        sent = ((name, config["route_prefix"]) for name, config in sorted(self.applications.items()))
        return f"sends {', '.join(f'{name} at {route}' if route else name for name, route in sent) or 'none'}"


@dataclass(frozen=True)
class Hold:
    """What is to be sent waits: it would begin builds again."""

    applications: frozenset[str]
    """Ours that differ from what Serve runs."""
    built: tuple[str, ...]

    def __str__(self) -> str:
        return f"changes wait while Serve builds {', '.join(self.built)}, which each change begins again"


Step = Reach | Fail | Drop | Send | Hold


def next_step(
    plan: Plan, before: Mapping[str, Condition], *, now: datetime, holders: Callable[[], str | None] = lambda: None
) -> tuple[Step | None, dict[str, Condition]]:
    """Return the next step, None if there is nothing to do now, and why each model stands still.

    ``before`` are the conditions as they were last written. ``holders`` is called for who holds the cluster's resources
    where a version has no room; None keeps what was said of that before.
    """
    built = builds(plan, before, now=now)
    before = {**without_builds(before), **built}
    held = tuple(held_by(plan, built, now=now))
    conditions = dict(built)
    for model, error in plan.blocked.items():
        _say(conditions, before, model, str(error), now=now)
    starved = _starved(plan)
    for item in starved.values():
        _say(conditions, before, item.name, _lacks_room(item), now=now, holders=holders)
    # The one for the route is said first, since its flip waits for a reason that stays.
    for transition in sorted(plan.desired.coming, key=lambda one: one.goal.get("role") != "champion"):
        step, reason = _come_up(plan, transition, before.get(transition.name), now=now)
        if isinstance(step, Drop) and held:
            reason = f"{step} once Serve has built {', '.join(held)}"
        elif step is not None:
            return step, dict(before)
        pending = unscheduled(plan.details, app_name(transition.name, transition.version))
        _say(conditions, before, transition.name, reason, now=now, holders=holders if pending else None)
    failing = _failing_ones(plan, before, now=now)
    if (due := next((name for name, (_, is_due) in failing.items() if is_due), None)) is not None and not held:
        condition = failing[due][0]
        return Drop(due), {**before, condition.name: condition}
    for condition, is_due in failing.values():
        conditions[condition.name] = before[condition.name] if is_due else condition
    waited = {name: item for name, item in starved.items() if _waited(before.get(item.name), item, now=now)}
    applications = next_applications(plan, starved=waited)
    hold: Hold | None = None
    if changed := differing(applications, plan.ours):
        if not held or withdraws(plan, applications):
            return Send(applications), dict(before)
        hold = Hold(changed, held)
        timed = {item.name for item in starved.values()} | {condition.name for condition, _ in failing.values()}
        for model in _unsent(plan, changed) - timed:
            conditions.pop(model, None)
        for model in sorted(filter(None, (model_of({**plan.ours, **applications}[name]) for name in changed))):
            _say(conditions, before, model, str(hold), now=now)
    for model, lack, pending in _lacks(plan, applications, waited):
        _say(conditions, before, model, lack, now=now, holders=holders if pending else None)
    return hold, conditions


def starting(
    plan: Plan, waiting: Collection[str], *, now: datetime, grows: Callable[[], bool | None]
) -> list[Transition]:
    """Return the versions whose time to come up begins now, but for applications that wait for a build.

    It begins again while a cluster that grows adds a node, until a replica has a place.
    """
    named = {app_name(one.name, one.version): one for one in plan.desired.coming}
    coming = {name: one for name, one in named.items() if name not in waiting}
    found = [one for one in coming.values() if one.started_at is None]
    placeless = [
        one
        for name, one in coming.items()
        if one.started_at is not None
        and without_place(plan.details, name)
        and _passed(one.started_at, PENDING_S, now)
        and not _passed(one.began_at, NODE_S, now)
    ]
    return [*found, *placeless] if placeless and grows() else found


def seen_by(plan: Plan | None, model: Model) -> Plan | None:
    """Return what Serve runs if that was read for what is desired of a model; None if it has changed since.

    Otherwise a version could count as up by settings that it does not run with yet.
    """
    if plan is None:
        return None
    desired = tuple(item for item in plan.desired.deployments if item.name == model.name)
    return plan if desired == model.deployments else None


def is_up(plan: Plan | None, item: Deployment, *, goal: Mapping[str, Any], hurry: bool = False) -> bool:
    """Return whether a version runs as it is desired, with the replicas that its goal needs; False without a plan."""
    if plan is None:
        return False
    name = app_name(item.name, item.version)
    live, config = configs(plan.details).get(name), plan.wanted.get(name)
    if live is None or config is None or not settled(live, config):
        return False
    least, needed = _replicas(plan, name, goal, renewed=True)
    if hurry:
        return takes_requests(plan.details, name) and running_replicas(plan.details, name) >= min(1, needed)
    return status_of(plan.details, name) == "RUNNING" and running_replicas(plan.details, name) >= max(least, needed)


def _replicas(plan: Plan, name: str, goal: Mapping[str, Any], *, renewed: bool) -> tuple[int, int]:
    """Return how many replicas a version needs at least, and how many for its goal."""
    (options,) = plan.wanted[name]["deployments"]
    least: int = options["autoscaling_config"]["min_replicas"]
    least = max(1, least) if not renewed or goal.get("weight") or goal.get("shadow") else least
    holder = holder_of(plan.ours, plan.wanted[name])
    if goal.get("role") != "champion" or holder == name:
        return least, least
    needed = needed_replicas(plan.wanted[name], plan.details, holder)
    return min(max(1, least), needed), needed


def _come_up(
    plan: Plan, transition: Transition, condition: Condition | None, *, now: datetime
) -> tuple[Step | None, str]:
    """Return the step that a version on its way up needs, or what it waits for."""
    name = app_name(transition.name, transition.version)
    which = f"version {transition.version} of {transition.name}"
    late = now >= (transition.deadline_at or now + timedelta(seconds=transition.timeout_s))
    if (taken := plan.blocked.get(transition.name)) is not None:
        return (Fail(transition, str(taken)), "") if late else (None, str(taken))
    if name not in plan.wanted:
        return Fail(transition, f"{which} is not desired any more"), ""
    details, live = plan.details, configs(plan.details).get(name)
    status, running = status_of(details, name), running_replicas(details, name)
    renewed = any(item["version"] == transition.version for item in transition.restores)
    least, needed = _replicas(plan, name, transition.goal, renewed=renewed)
    sent = live is not None and settled(live, plan.wanted[name])
    said = "" if condition is None else condition.reason.partition(NO_ROOM)[0]
    if status in BROKEN and live is not None:
        if status == "DEPLOY_FAILED" and not running and _older(live, transition) and not late:
            return Drop(name), ""  # it failed in an earlier attempt
        if not _older(live, transition) or (status == "UNHEALTHY" and sent):  # other settings may mend it
            return Fail(transition, _died(plan, transition.version, name)), ""
    if not sent:
        old = transition.goal.get("replaces")
        reason = f"{which} is being started" if old is None else f"{which} starts once version {old} has ended"
    elif running < least or (renewed and status != "RUNNING" and not transition.hurry):
        reason = f"{which} comes up: {running} of {least} replicas run, {name} is {status}"
    elif running >= needed or (transition.hurry and takes_requests(details, name)):
        return Reach(transition), ""
    else:
        reason = f"{which} gets as many replicas as the version that has the route"
        if condition is not None and said == reason and _passed(condition.since, SCALE_WAIT_S, now):
            return Reach(transition), ""
    if late:
        reason = condition.reason if condition is not None and said == reason else reason
        told = "\n".join(part for part in (f"not ready in time: {reason}", message_of(details, name)) if part)
        return Fail(transition, told), ""
    return None, reason


def _unsent(plan: Plan, changed: Collection[str]) -> set[str]:
    """Return the models with a version on its way up that is among these applications."""
    coming = {one.name for one in plan.desired.coming if app_name(one.name, one.version) in changed}
    return coming - plan.blocked.keys()


def _lacks(plan: Plan, applications: Collection[str], waited: Collection[str]) -> Iterator[tuple[str, str, bool]]:
    """Yield what Serve lacks of each model, and whether a replica of it is on no node."""
    for model, items in _by_model(plan.desired.deployments).items():
        dead = next(
            (_died(plan, item.version, app_name(model, item.version)) for item in items if broken(plan, item)), None
        )
        away = [item for item in items if app_name(model, item.version) not in applications]
        if away and model not in plan.blocked:
            why = f"{' and '.join(waited)} waits for room" if waited else "the version that failed to replace it ends"
            dead = f"version {away[0].version} of {model} is away while {why}"
        if (lack := dead or lacking(plan, items)) is not None:
            pending = any(unscheduled(plan.details, app_name(model, item.version)) for item in items)
            yield model, lack, pending


def _failing_ones(plan: Plan, before: Mapping[str, Condition], *, now: datetime) -> dict[str, tuple[Condition, bool]]:
    """Return the applications that fail, and whether each is restarted now: one of a model, the champion first."""
    coming = {app_name(one.name, one.version) for one in plan.desired.coming}
    found: dict[str, tuple[Condition, bool]] = {}
    models: set[str] = set()
    for item in sorted(plan.desired.deployments, key=lambda item: item.role != "champion"):
        name = app_name(item.name, item.version)
        if item.name in models or name in coming:
            continue
        if status_of(plan.details, name) == "DEPLOY_FAILED" and not running_replicas(plan.details, name):
            models.add(item.name)
            found[name] = _failing(before.get(item.name), item.name, _died(plan, item.version, name), now=now)
    return found


def _starved(plan: Plan) -> dict[str, Deployment]:
    """Return the champions without a replica of which one is on no node, by application."""
    champions = [item for item in plan.desired.deployments if item.role == "champion" and item.name not in plan.blocked]
    named = {app_name(item.name, item.version): item for item in champions}
    details = plan.details
    return {
        name: one for name, one in named.items() if unscheduled(details, name) and not running_replicas(details, name)
    }


def _lacks_room(champion: Deployment) -> str:
    return f"version {champion.version} of {champion.name} has no replica, and waits for room"


def _waited(condition: Condition | None, champion: Deployment, *, now: datetime) -> bool:
    """Return whether a champion has waited so long for room that versions on standby leave."""
    if condition is None or condition.reason.partition(NO_ROOM)[0] != _lacks_room(champion):
        return False
    return _passed(condition.since, PENDING_S, now)


def _older(live: Mapping[str, Any], transition: Transition) -> bool:
    """Return whether an application was sent before a transition began."""
    revision = mark_of(live).revision
    return revision is not None and revision.at < transition.began_at.isoformat()


def _passed(since: datetime, seconds: float, now: datetime) -> bool:
    return now - since >= timedelta(seconds=seconds)


def _died(plan: Plan, version: int, name: str) -> str:
    """Return what Serve says of a version that fails: its replicas never came up, or they were up and died."""
    status = status_of(plan.details, name)
    what = "was up, and its replicas died" if status == "UNHEALTHY" else "does not start"
    return f"version {version} {what}: {name} is {status}:\n{message_of(plan.details, name)}".rstrip(":\n")


def _say(
    conditions: dict[str, Condition],
    before: Mapping[str, Condition],
    model: str,
    reason: str,
    *,
    now: datetime,
    holders: Callable[[], str | None] | None = None,
) -> None:
    """Say why a model stands still, since when, and who holds what it waits for; what was said first stays."""
    if model in conditions:
        return
    old = before.get(model, Condition(model, "", now))
    said, _, held = old.reason.partition(NO_ROOM)
    since = old.since if said == reason else now
    if holders is not None and _passed(since, PENDING_S, now) and (held := holders() or held):
        reason += NO_ROOM + held
    conditions[model] = replace(old, reason=reason, since=since)


def _failing(old: Condition | None, model: str, reason: str, *, now: datetime) -> tuple[Condition, bool]:
    """Return the condition of a failing application, and whether it is restarted now."""
    shortest, longest = RETRY_S
    if old is None or old.retry_at is None:
        return Condition(model, reason, now, retry_at=now + timedelta(seconds=shortest)), False
    if now < old.retry_at:
        return replace(old, reason=reason), False
    pause_s = min(longest, shortest * 2 ** (old.attempts + 1))
    retry_at = now + timedelta(seconds=pause_s)
    return replace(old, reason=reason, attempts=old.attempts + 1, retry_at=retry_at), True


def _by_model(deployments: Iterable[Deployment]) -> dict[str, list[Deployment]]:
    found: dict[str, list[Deployment]] = {}
    for item in deployments:
        found.setdefault(item.name, []).append(item)
    return found
