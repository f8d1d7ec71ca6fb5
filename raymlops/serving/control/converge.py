"""What Serve runs next on its way to the desired state. Pure: what is desired and Serve's details in, applications out.

A route stays with its holder until the version that takes it runs with its settings, and a version on its way to a
route gets as many replicas as the holder runs, since a flip sends it all the traffic at once. While a champion has no
room for a replica, versions on standby leave. Everything else is sent as it is desired. So every kill in between leaves
each route with a version that answers. Where there is room for one version of a model at a time (``serve.update:
replace``), nobody has the route from the end of the old one until the new one is up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymlops.serving.control.details import configs, covers, message_of, routes, running_replicas, settled, status_of
from raymlops.serving.control.ownership import model_of
from raymlops.serving.names import INDEX_APP, app_name, route_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from raymlops.serving.control.details import Details
    from raymlops.serving.control.plan import Plan
    from raymlops.state.store import Deployment

BROKEN = frozenset({"DEPLOY_FAILED", "UNHEALTHY"})


def next_applications(plan: Plan, *, starved: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Return our applications as Serve should run them next; ``starved`` are those of champions that wait for room."""
    desired, applications = plan.desired, dict(plan.wanted)
    coming = {app_name(one.name, one.version) for one in desired.coming if one.goal.get("role") == "champion"}
    champions = {app_name(item.name, item.version) for item in desired.deployments if item.role == "champion"}
    for one in desired.coming:
        name = app_name(one.name, one.version)
        if name in applications and (one.goal.get("weight") or one.goal.get("shadow")):
            applications[name] = _scaled(applications[name], 1)  # it may sleep, and gets no request that wakes it
    for name, config in plan.wanted.items():
        holder = holder_of(plan.ours, config)
        if name not in coming | champions or holder is None or holder == name:
            continue
        needed = needed_replicas(config, plan.details, holder)
        if name in coming or running_replicas(plan.details, name) < needed:
            applications[name] = _scaled(config, needed)
        # New settings may restart its replicas, or keep them from starting, so they come before the route.
        ready = takes_requests(plan.details, name) and settled(plan.ours.get(name), config)
        if config["route_prefix"] is not None and not ready:
            applications[name] = {**applications[name], "route_prefix": None}
            kept = plan.wanted.get(holder, plan.ours[holder])  # with its newest keys, if it is still desired
            applications[holder] = {**kept, "route_prefix": config["route_prefix"]}
    for name in _on_standby(plan) if starved else ():
        if applications[name]["route_prefix"] is None:
            del applications[name]
    for name in plan.ours.keys() - applications.keys():
        if model_of(plan.ours[name]) in plan.blocked:
            applications[name] = plan.ours[name]
        holder = holder_of(plan.ours, plan.ours[name])
        if holder is None or holder not in applications or holder in starved:
            continue
        if _gets_traffic(plan.ours[name], plan.ours[holder]):  # it leaves once nobody sends it requests
            applications[name] = plan.wanted.get(name, plan.ours[name])
    return _one_at_a_time(plan, applications)


def holder_of(ours: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> str | None:
    """Return which of our live applications holds the route of an application's model; None for the index."""
    model = model_of(config)
    if model is None:
        return None
    return next((name for name, live in ours.items() if live.get("route_prefix") == route_of(model)), None)


def takes_requests(details: Details, name: str) -> bool:
    """Return whether an application has a running replica and is not failing."""
    return running_replicas(details, name) > 0 and status_of(details, name) not in BROKEN


def needed_replicas(config: Mapping[str, Any], details: Details, holder: str | None) -> int:
    """Return how many replicas a version needs to take the route: those of its holder, within its own bounds."""
    (options,) = config["deployments"]
    bounds: dict[str, int] = options["autoscaling_config"]
    # A version scaled to zero answers only once it has a replica again.
    running = 0 if holder is None else running_replicas(details, holder)
    return min(max(1, bounds["min_replicas"], running), bounds["max_replicas"])


def broken(plan: Plan, item: Deployment) -> bool:
    """Return whether a deployment runs with its settings, and fails; its route may be held back for that reason."""
    name = app_name(item.name, item.version)
    live, wanted = configs(plan.details).get(name), plan.wanted.get(name)
    return live is not None and settled(live, wanted) and status_of(plan.details, name) in BROKEN


def lacking(plan: Plan, items: Iterable[Deployment], *, hurry: bool = False, sent: bool = False) -> str | None:
    """Return what Serve lacks of these deployments, as text; None if it runs all of them as desired.

    In a ``hurry`` one running replica is enough; with ``sent`` that Serve has their settings.
    """
    live, held = configs(plan.details), routes(plan.details)
    for item in items:
        name = app_name(item.name, item.version)
        if name not in plan.wanted:
            continue
        status = status_of(plan.details, name)
        if not covers(live.get(name), plan.wanted[name]) and not broken(plan, item):
            return f"{name} does not have its settings yet"
        if sent:
            continue
        if status != "RUNNING" and not (hurry and takes_requests(plan.details, name)):
            return "\n".join(part for part in (f"{name} is {status}", message_of(plan.details, name)) if part)
        if item.role == "champion" and item.name not in plan.blocked and held.get(route_of(item.name)) != name:
            return f"{name} does not hold {route_of(item.name)} yet"
    return None


def index_starts(plan: Plan) -> bool:
    """Return whether the list of models at / is ours and has no replica yet."""
    starts = status_of(plan.details, INDEX_APP) == "DEPLOYING" and not running_replicas(plan.details, INDEX_APP)
    return INDEX_APP in plan.wanted and starts


def standing_of(plan: Plan, model: str) -> set[str]:
    """Return the applications of a model's versions on Serve, those that are ending included."""
    prefix = app_name(model, 0).removesuffix("0")
    found = {name for name in plan.details["applications"] if name.startswith(prefix)}
    return {name for name in found if name in plan.ours or status_of(plan.details, name) == "DELETING"}


def _one_at_a_time(plan: Plan, applications: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the applications without what is being replaced, and without versions whose predecessor has not ended.

    That goes by the settings of a model's versions, and by what was to replace one of them: it is no longer desired.
    """
    new = {one.name: app_name(one.name, one.version) for one in plan.desired.coming if "replaces" in one.goal}
    alone = {*new, *(item.name for item in plan.desired.deployments if item.replaces)} - plan.blocked.keys()
    gone = {app_name(one.name, one.version) for one in plan.desired.given_up}
    models = {name: model_of(config) for name, config in applications.items()}
    left = {name for name, model in models.items() if model not in alone or new.get(model, name) == name}
    waiting = set()
    for name in left - plan.ours.keys():
        if (model := models[name]) is not None:
            ending = standing_of(plan, model) - left
            waiting |= {name} if ending and (model in alone or ending & gone) else set()
    return {name: config for name, config in applications.items() if name in left - waiting}


def _on_standby(plan: Plan) -> set[str]:
    """Return the applications of versions beside a champion that are not on their way to anything."""
    coming = {app_name(one.name, one.version) for one in plan.desired.coming}
    beside = [item for item in plan.desired.deployments if item.role != "champion" and item.name not in plan.blocked]
    return {app_name(item.name, item.version) for item in beside} - coming


def _gets_traffic(config: Mapping[str, Any], holder: Mapping[str, Any]) -> bool:
    """Return whether the holder of a route sends requests, or copies, to a version."""
    (options,) = holder["deployments"]
    traffic = (options.get("user_config") or {}).get("traffic") or {}
    shares = [*traffic.get("canaries", ()), *traffic.get("shadows", ())]
    return config["args"]["version"] in {share["version"] for share in shares}


def _scaled(config: dict[str, Any], replicas: int) -> dict[str, Any]:
    """Return an application with at least this many replicas."""
    (options,) = config["deployments"]
    bounds = {key: value for key, value in options["autoscaling_config"].items() if key != "initial_replicas"}
    bounds["min_replicas"] = max(replicas, bounds["min_replicas"])
    return {**config, "deployments": [{**options, "autoscaling_config": bounds}]}
