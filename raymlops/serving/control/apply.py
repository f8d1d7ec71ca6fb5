"""Apply the desired state to Serve, and read back the result.

Owns the order of steps and the waiting. Knows nothing of where the desired state is stored or why it changed.

A version that shall get the route first comes up beside the one that holds it; then the route flips, which Serve does
in place within half a second. So a version that does not come up never gets the route. Nothing here calls, or waits
for, the version that loses the route: it may be the one that hangs.

A caller that cannot block calls ``send`` for a version, ``await_up``, and ``apply`` once it is up. ``refresh`` sends
settings only.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from raymlops.errors import RaymlopsError
from raymlops.serving.control.details import (
    Details,
    configs,
    covers,
    routes,
    running_replicas,
    same,
    settled,
    status_of,
    statuses,
)
from raymlops.serving.control.ownership import divide
from raymlops.serving.control.plan import plan_of
from raymlops.serving.control.wait import (
    ROUTE_WAIT_S,
    SCALE_WAIT_S,
    Api,
    Application,
    Applied,
    await_answers,
    await_gone,
    await_ready,
    await_replicas,
)
from raymlops.serving.names import INDEX_APP, app_name, route_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from raymlops.serving.control.plan import Plan
    from raymlops.state.store import Desired

__all__ = ["Api", "Applied", "apply", "await_up", "needed_replicas", "refresh", "send"]

_log = logging.getLogger(__name__)


def apply(
    desired: Desired,
    *,
    api: Api,
    wait_s: float,
    concerned: Collection[tuple[str, int]] | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    grpc_port: int | None = None,
    probe: bool = True,
    hurry: bool = False,
    wait: bool = True,
) -> Applied:
    """Bring Serve to the desired state and return what was read back.

    Sends nothing if Serve already has this config. ``concerned`` are the versions, as (name, version), that must be
    running at the end, by default every champion; the others are sent and not awaited, so that a broken model blocks
    no other. ``host`` and the ports count only if Serve does not run yet. ``probe`` also
    requests each champion concerned that takes a route over HTTP, where Serve runs on this machine. With
    ``hurry`` a version that is up takes the route at once, and has as many replicas as the old one only later. Without
    ``wait`` everything is sent and nothing awaited. To undo a failed apply, apply the previous desired state: versions
    of this state that are not in it are deleted. Applications of other states stay unchanged.

    Raises:
        TakenError: another state has a model that is concerned; nothing was changed.
        OutdatedStateError: Serve runs the desired state of a newer copy of the state database; nothing was changed.
        DeployError: a version did not come up in ``wait_s``, with its own message. The routes are as they were before.
        ClusterError: the dashboard does not answer, or refuses us.
        PortTakenError: Serve does not run yet and another process listens on its port.
        UsageError: the desired state cannot be rendered.
    """
    if concerned is None:
        concerned = {(item.name, item.version) for item in desired.deployments if item.role == "champion"}
    names = {name for name, _ in concerned}
    plan = plan_of(desired, api, host=host, port=port, grpc_port=grpc_port, concerned=names)
    details, wanted, ours, desired = plan.details, plan.wanted, plan.ours, plan.desired
    deadline = time.monotonic() + wait_s
    champions = [item for item in desired.deployments if item.role == "champion"]
    awaited = {app_name(*version) for version in concerned} & wanted.keys()
    failed = {name for name in awaited if status_of(details, name) == "DEPLOY_FAILED"}
    changed = bool(failed) or not same(wanted, ours)
    scaled: dict[str, dict[str, Any]] = {}
    if changed:
        details = _drop(api, details, failed, plan)
        staged, incoming = _stage(wanted, details, desired)
        scaled = {name: new.config for name, new in incoming.items() if hurry and name in awaited and new.up}
        first = {name for name in incoming if wait and name in awaited and name not in scaled}
        if first:
            plan.put(api, staged)
            await_replicas(api, {name: incoming[name].replicas for name in first}, deadline=deadline)
        wanted = _held_back(wanted, staged, incoming.keys() - first - scaled.keys())
        plan.put(api, wanted | scaled)
        if awaited and status_of(details, INDEX_APP) in {"NOT_STARTED", "DEPLOYING"}:
            awaited |= {INDEX_APP} & wanted.keys()
    if not wait:
        return _applied(plan, details, changed=changed)

    def ready_in(details: Details, name: str) -> bool:
        if name in scaled:  # it answers already, with further replicas starting
            return running_replicas(details, name) > 0 and covers(configs(details).get(name), scaled[name])
        return status_of(details, name) == "RUNNING" and covers(configs(details).get(name), wanted[name])

    details = await_ready(api, awaited, ready_in, deadline=deadline)
    details = await_gone(api, details, ours.keys() - wanted.keys(), deadline=deadline)
    applied = _applied(plan, details, changed=changed)
    if probe and plan.local:
        held = {config.get("route_prefix"): name for name, config in ours.items()}
        probed = [item for item in champions if app_name(item.name, item.version) in awaited]
        if changed:  # a holder of its route already answers, and only its settings changed
            probed = [item for item in probed if held.get(route_of(item.name)) != app_name(item.name, item.version)]
        await_answers(applied, probed, deadline=min(deadline, time.monotonic() + ROUTE_WAIT_S))
    if scaled:
        _restore_bounds(api, plan, wanted)
    return applied


def send(
    desired: Desired,
    *,
    api: Api,
    coming: tuple[str, int],
    replicas: int,
    host: str = "127.0.0.1",
    port: int = 8000,
    grpc_port: int | None = None,
) -> bool:
    """Start a version, as (name, version), with at least so many replicas, without waiting.

    No route moves. Return whether anything had to be sent.

    Raises:
        RefusedError, DeployError, ClusterError, PortTakenError, UsageError: as ``apply``.
    """
    plan = plan_of(desired, api, host=host, port=port, grpc_port=grpc_port, concerned={coming[0]})
    name = app_name(*coming)
    failed = {name} if status_of(plan.details, name) == "DEPLOY_FAILED" else set()
    wanted = plan.wanted | {name: _scaled(plan.wanted[name], replicas)}
    if not failed and same(wanted, plan.ours):
        return False
    details = _drop(api, plan.details, failed, plan)
    staged, incoming = _stage(wanted, details, plan.desired)
    plan.put(api, _held_back(wanted, staged, incoming.keys()))
    return True


def await_up(
    api: Api,
    coming: tuple[str, int],
    *,
    least: int,
    replicas: int,
    wait_s: float,
    check: Callable[[], None],
    settings: Application | None = None,
) -> None:
    """Wait for the minimum of a version's replicas, then for a while for its full number.

    With ``settings``, a rendered application, wait until all its replicas have them. ``check`` is called at each poll,
    and raises if the version is not desired any more.

    Raises:
        DeployError: it did not come up in ``wait_s``, with its own message.
        ClusterError: the dashboard does not answer, or refuses us.
        Exception: that of ``check``.
    """
    name = app_name(*coming)

    def has_settings(details: Details, name: str) -> bool:
        return status_of(details, name) == "RUNNING" and settled(configs(details).get(name), settings)

    await_replicas(
        api,
        {name: (least, replicas)},
        deadline=time.monotonic() + wait_s,
        ready=None if settings is None else has_settings,
        check=check,
    )


def refresh(desired: Desired, *, api: Api, dry_run: bool = False) -> bool:
    """Send the settings of live versions if Serve has others, and return whether there were any.

    Nothing starts, nothing stops and no route moves.

    Raises:
        RefusedError, ClusterError, DeployError, UsageError: as ``apply``.
    """
    plan = plan_of(desired, api, host="127.0.0.1", port=0, grpc_port=None, concerned=(), check=False)
    kept = {name: _resettled(config, plan.wanted.get(name)) for name, config in plan.ours.items()}
    if same(kept, plan.ours):
        return False
    if not dry_run:
        plan.put(api, kept)
    return True


def needed_replicas(details: Details, coming: tuple[str, int], *, least: int, most: int) -> int:
    """Return how many replicas a version needs before it gets its route: as many as the holder runs."""
    name = app_name(*coming)
    holder = routes(details).get(route_of(coming[0]))
    if holder == name:
        return least  # which may be none, without traffic
    # A version scaled to zero answers only once it has a replica again.
    return min(max(1, least, 0 if holder is None else running_replicas(details, holder)), most)


def _scaled(config: dict[str, Any], replicas: int) -> dict[str, Any]:
    """Return an application with at least this many replicas."""
    (options,) = config["deployments"]
    bounds = {key: value for key, value in options["autoscaling_config"].items() if key != "initial_replicas"}
    bounds["min_replicas"] = max(replicas, bounds["min_replicas"])
    return {**config, "deployments": [{**options, "autoscaling_config": bounds}]}


def _resettled(live: dict[str, Any], wanted: dict[str, Any] | None) -> dict[str, Any]:
    """Return a live application with the wanted settings, on its present route."""
    if wanted is None or not covers(live.get("args"), wanted["args"]) or covers(live, wanted):
        return live
    if live.get("route_prefix") is None:
        # It may be starting with more replicas than it needs later, and must not be scaled down meanwhile.
        (now,), (later,) = (
            [options["autoscaling_config"] for options in config["deployments"]] for config in (live, wanted)
        )
        wanted = _scaled(wanted, min(now["min_replicas"], later["max_replicas"]))
    return {**wanted, "route_prefix": live.get("route_prefix")}


def _applied(plan: Plan, details: Details, *, changed: bool) -> Applied:
    listens = plan.listens
    return Applied(changed, statuses(details), routes(details), listens.host, listens.port, plan.notes, listens.reach)


def _restore_bounds(api: Api, plan: Plan, wanted: Mapping[str, dict[str, Any]]) -> None:
    """Restore the scaling bounds of a version that got its route with ``hurry``.

    The route is already flipped, so that a failure here is no failed change: the controller sends these settings again.
    """
    try:
        plan.put(api, wanted)
    except RaymlopsError as error:
        _log.warning("replicas keep the bounds of the flip until the controller's next pass: %s", error)


def _drop(api: Api, details: dict[str, Any], failed: set[str], plan: Plan) -> dict[str, Any]:
    """Delete applications that failed in an earlier attempt, so that sending them again is a new one."""
    if not failed:
        return details
    plan.put(api, {name: config for name, config in plan.ours.items() if name not in failed})
    return await_gone(api, details, failed, deadline=time.monotonic() + SCALE_WAIT_S)


class _Incoming(NamedTuple):
    """A version that gets a route and is not ready for it."""

    replicas: tuple[int, int]
    """Its minimum, and the number that the traffic needs."""
    up: bool
    """Whether it has any."""
    config: dict[str, Any]
    """Its application with the route and the wanted replicas."""


def _stage(
    wanted: Mapping[str, dict[str, Any]], details: Application, desired: Desired
) -> tuple[dict[str, dict[str, Any]], dict[str, _Incoming]]:
    """Return the step before the flip, and the applications that must be up before it with their replicas.

    In that step everything live stays unchanged, no route moves, and new versions come up beside it. There are none
    if each version that gets a route is up already. Each is first scaled to the replicas of its route's holder, since a
    flip sends it all the traffic at once.
    """
    live = divide(details, desired).ours
    holders = {config["route_prefix"]: name for name, config in live.items() if config.get("route_prefix")}
    staged = dict(live)
    incoming: dict[str, _Incoming] = {}
    for name, config in wanted.items():
        holder = holders.get(config["route_prefix"], name)
        if holder == name:
            staged.setdefault(name, config)
            continue
        (options,) = config["deployments"]
        bounds = options["autoscaling_config"]
        least = max(1, bounds["min_replicas"])  # a version scaled to zero answers only once it has a replica again
        replicas = min(max(least, running_replicas(details, holder)), bounds["max_replicas"])
        running, status = running_replicas(details, name), status_of(details, name)
        if running < replicas or status != "RUNNING":
            up = running > 0 and status not in {"DEPLOY_FAILED", "UNHEALTHY"}
            scaled = _scaled(config, replicas)
            incoming[name] = _Incoming((least, replicas), up, scaled)
            staged[name] = {**scaled, "route_prefix": None}
    return staged, incoming


def _held_back(
    wanted: dict[str, dict[str, Any]], staged: Mapping[str, dict[str, Any]], names: Collection[str]
) -> dict[str, dict[str, Any]]:
    """Return the last step, without route flips of other models to a version that is not up.

    An earlier change that was interrupted may have left such a model. It continues unchanged; its new version comes up
    beside it, and the next apply that finds it up completes the change.
    """
    held = {wanted[name]["args"]["name"] for name in names}
    kept = {name: config for name, config in staged.items() if config["args"].get("name") in held}
    return {name: config for name, config in wanted.items() if config["args"].get("name") not in held} | kept
