"""Whether the cluster has room for a version beside what is served, decided before anything is changed.

Rows of Ray's state API in, a decision with its numbers out. Jobs that end by themselves, such as trainings, do not
count, since Serve waits for them. Served versions stay, and count.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from raymlops.cluster.placement import Holder, WorkerRequest, add, room, show
from raymlops.cluster.resource_usage import group
from raymlops.errors import ClusterError, InsufficientResourcesError
from raymlops.lifecycle.live.lineup import spare_of
from raymlops.serving.control.render import settings_of
from raymlops.serving.names import app_name

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from raymlops.lifecycle.live.reconciler import Cluster
    from raymlops.serving.control.rest_api import Room
    from raymlops.state.store import Deployment, Desired

_REPLICA = "SERVE_REPLICA::"


def leaving_first(cluster: Cluster, desired: Desired, new: Deployment, *, replaces: bool = False) -> tuple[int, ...]:
    """Return the idle versions that are removed before ``new`` comes up, since there is no room beside them.

    Where it ``replaces`` all others, they end first anyway, and it only has to fit in their place. The place of another
    model that is being replaced now is kept for it, although nobody is in it.

    Raises:
        InsufficientResourcesError: it does not fit even then, and no autoscaler may add nodes.
    """
    before = [item for item in desired.deployments if item.name == new.name]
    if any((item.version, item.serve) == (new.version, new.serve) for item in before):
        return ()
    try:
        room = cluster.room()
    except ClusterError:
        return ()  # what may fit must not be rejected; a dashboard that is down is reported by the next request
    idle = frozenset(item.version for item in before) if replaces else spare_of(before, new)
    leaving = [item for item in before if item.version in idle]
    least = 0 if any(item.version == new.version for item in before) else 1  # it starts with one replica at least
    must = must_leave_first(new, leaving, cluster=room, least=least, kept=_kept(desired, new, cluster=room))
    return tuple(sorted(idle)) if must and not replaces else ()


def must_leave_first(
    new: Deployment, leaving: Sequence[Deployment], *, cluster: Room, least: int, kept: Sequence[Holder] = ()
) -> bool:
    """Return whether ``new`` fits only if the versions that it replaces are removed before it comes up.

    ``least`` is how many replicas it needs at least, where it may have fewer afterwards, and ``kept`` what is to start
    meanwhile, on whichever node.

    Raises:
        InsufficientResourcesError: it does not fit even then, and no autoscaler may add nodes.
    """
    mine = {app_name(new.name, new.version)}
    gone = {app_name(item.name, item.version) for item in leaving}
    asked = _asked(new, least=least)
    if room(asked, _left(cluster, without=mine, kept=kept)) >= asked.workers or cluster.grows is not False:
        return False
    most = room(asked, _left(cluster, without=mine | gone, kept=kept))
    if most >= asked.workers:
        return True
    total = [node["resources_total"] for node in cluster.nodes]
    served = [actor for actor in _replicas(cluster) if _app(actor) not in mine | gone]
    holders = [holder for holder in group(actors=served, tasks=[], groups=[], jobs={}) if show(holder.resources)]
    has = f"{show(add(total), also=asked.each) or 'no CPU'} on {len(total)} node{'s' * (len(total) != 1)}"
    raise InsufficientResourcesError(
        f"{asked.purpose} requests {asked.workers} x {show(asked.each, also=asked.each)}, and beside what is served "
        f"there is room for {most}: the cluster has {has}\n"
        + ("\n".join(f"  held by {holder}" for holder in [*holders, *kept]) or "  nothing else is served"),
        hint="Lower serve.min_replicas, serve.cpus_per_replica or serve.memory_gb, end a version with "
        "`raymlops deploy NAME --remove --version N` (`raymlops status` shows which are up), or add nodes."
        + ("" if new.replaces else " With serve.update: replace the live version ends first, which is an outage."),
    )


def _asked(new: Deployment, *, least: int) -> WorkerRequest:
    settings = settings_of(new)
    return WorkerRequest(
        max(least, settings.min_replicas),
        settings.cpus_per_replica,
        settings.gpus_per_replica,
        purpose=f"{new.name} version {new.version}",
        memory_bytes=settings.memory_bytes or 0.0,
        custom=settings.resources_per_replica,
    )


def _kept(desired: Desired, new: Deployment, *, cluster: Room) -> list[Holder]:
    """Return what other models need of which the old version has ended and the next one has no replica yet.

    It is the larger of both needs: the old version comes back if the next one does not come up.
    """
    running = {_app(actor) for actor in _replicas(cluster)}
    kept = []
    for one in desired.coming:
        if "replaces" not in one.goal or one.name == new.name:
            continue
        versions = {one.version, one.goal["replaces"]}
        pair = [item for item in desired.deployments if item.name == one.name and item.version in versions]
        if running.isdisjoint(app_name(item.name, item.version) for item in pair):
            needs = [add([asked.each] * asked.workers) for asked in (_asked(item, least=1) for item in pair)]
            most = {name: max(need.get(name, 0.0) for need in needs) for name in add(needs)}
            kept.append(Holder(f"version {one.version} of {one.name}, which replaces another", most))
    return kept


def _left(cluster: Room, *, without: Collection[str], kept: Sequence[Holder]) -> list[dict[str, float]]:
    """Return what each node has beside the replicas of all applications but those in ``without``.

    What is ``kept`` may start on any node.
    """
    held: dict[str, list[dict[str, float]]] = defaultdict(list)
    for actor in _replicas(cluster):
        if _app(actor) not in without:
            held[actor["node_id"]].append(actor.get("required_resources") or {})
    nodes = []
    for node in cluster.nodes:
        taken = add([*held[node["node_id"]], *(one.resources for one in kept)])
        nodes.append({name: amount - taken.get(name, 0.0) for name, amount in node["resources_total"].items()})
    return nodes


def _replicas(cluster: Room) -> list[dict[str, Any]]:
    return [actor for actor in cluster.actors if (actor.get("name") or "").startswith(_REPLICA)]


def _app(actor: dict[str, Any]) -> str:
    name: str = actor["name"]
    return name.removeprefix(_REPLICA).partition("#")[0]
