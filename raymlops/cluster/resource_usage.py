"""What a connected cluster has, and who holds it now: Serve replicas, placement groups, actors and tasks.

Owns the reading of Ray's tables. Decides nothing.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.cluster.placement import SERVED, Contender, Holder, add

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_REPLICA = "SERVE_REPLICA::"
_JOB_DIGITS = 8
"""Of a job's id, with which Ray (2.60) ends the id of a placement group that the job made."""
TRIAL_MARK = {"memory": 1}
"""In the first bundle of a trial's placement group: one byte, by which sweeps recognize each other.

A name would have to be unique to each group, and Tune reuses processes only between equal requests.
"""
_MAX_DEMANDS = 64
"""Of each size: more change no decision."""
_PENDING = {"PENDING", "PREPARED", "RESCHEDULING"}


def alive_nodes() -> list[tuple[dict[str, Any], dict[str, float]]]:
    """Return Ray's row of each living node, and what is free on it."""
    import ray
    from ray._private import state  # the free share of each node has no public call in 2.60; Ray Train asks here too

    free = state.available_resources_per_node()
    return [(node, dict(free.get(node["NodeID"], {}))) for node in ray.nodes() if node["Alive"]]


def nodes() -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Return the resources of each living node: all of them, and what is free."""
    alive = alive_nodes()
    return [dict(node["Resources"]) for node, _ in alive], [free for _, free in alive]


@dataclass(frozen=True)
class Usable:
    """What one job may use of each node, by its id, and who contends for it."""

    free: dict[str, dict[str, float]]
    own: dict[str, dict[str, float]]
    """What its placement groups reserve."""
    contenders: list[Contender]

    @property
    def nodes(self) -> dict[str, dict[str, float]]:
        """Return what is free or its own."""
        return {node: add([free, self.own.get(node, {})]) for node, free in self.free.items()}


def usable() -> Usable:
    """Return what this job may use."""
    import ray
    from ray.util import placement_group_table

    job_id, groups = ray.get_runtime_context().get_job_id(), list(placement_group_table().values())
    free = {node["NodeID"]: amounts for node, amounts in alive_nodes()}
    return Usable(free, reserved(groups, job_id=job_id), contenders(groups, job_id=job_id, demands=demands()))


def contenders(
    groups: Iterable[Mapping[str, Any]], *, job_id: str, demands: Sequence[Mapping[str, float]] = ()
) -> list[Contender]:
    """Return the other jobs that sweep or wait; ``demands`` are those of tasks and actors, of whichever job."""
    jobs: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in groups:
        if row["state"] != "REMOVED" and not _made_by(row, job_id):
            jobs[row["placement_group_id"][-_JOB_DIGITS:]].append(row)
    found = [Contender({}, tuple((demand,) for demand in demands))] if demands else []
    for other, rows in jobs.items():
        held = reserved([row for row in rows if _is_trial(row)], job_id=other)
        pending = [tuple(row["bundles"].values()) for row in rows if row["state"] in _PENDING]
        if held or pending:
            found.append(Contender(held, tuple(pending)))
    return found


def reserved(groups: Iterable[Mapping[str, Any]], *, job_id: str) -> dict[str, dict[str, float]]:
    """Return what the placement groups of a job reserve on each node, by its id."""
    parts: dict[str, list[Mapping[str, float]]] = defaultdict(list)
    for row in groups:
        if row["state"] == "CREATED" and _made_by(row, job_id):
            for index, bundle in row["bundles"].items():
                parts[row["bundles_to_node_id"][index]].append(bundle)
    return {node_id: add(bundles) for node_id, bundles in parts.items()}


def reserved_beside_others(group_id: str) -> tuple[dict[str, dict[str, float]], bool]:
    """Return what a placement group reserves on each node, by its id, and whether others of its job wait for room."""
    from ray.util import placement_group_table

    return beside_others(placement_group_table(), group_id=group_id)


def beside_others(
    groups: Mapping[str, Mapping[str, Any]], *, group_id: str
) -> tuple[dict[str, dict[str, float]], bool]:
    """Return what ``reserved_beside_others`` does, of these groups by their ids."""
    job_id = group_id[-_JOB_DIGITS:]
    waiting = {key for key, row in groups.items() if row["state"] in _PENDING and _made_by(row, job_id)}
    return reserved([groups[group_id]], job_id=job_id), bool(waiting - {group_id})


def holders(*, without_job: str | None = None) -> list[Holder]:
    """Return who holds CPUs or GPUs, the largest share first; the placement groups of ``without_job`` are left out."""
    import ray
    from ray.util import placement_group_table

    actors = [_picked(row) for row in _listed("list_actors", filters=[("state", "=", "ALIVE")])]
    tasks = [_picked(row) for row in _listed("list_tasks", filters=[("state", "=", "RUNNING")])]
    jobs = {row.job_id: (row.entrypoint or "")[:60] for row in _listed("list_jobs") if row.job_id}
    if not actors:  # without a dashboard only names are known
        actors = [
            {"name": row["Name"], "class_name": row["ActorClassName"], "job_id": row["JobID"]}
            for row in ray._private.state.actors().values()  # noqa: SLF001 - nothing public lists them
            if row["State"] == "ALIVE"
        ]
    groups = [row for row in placement_group_table().values() if not _made_by(row, without_job)]
    return group(actors=actors, tasks=tasks, groups=groups, jobs=jobs)


def group(
    *,
    actors: list[dict[str, Any]],
    tasks: list[dict[str, Any]],
    groups: list[dict[str, Any]],
    jobs: Mapping[str, str],
) -> list[Holder]:
    """Turn rows of Ray's tables into holders: one for each Serve application, placement group and kind of the rest."""
    found: dict[str, list[Mapping[str, float]]] = defaultdict(list)
    inside: dict[str, set[str]] = defaultdict(set)
    owners: dict[str, str] = {}
    for actor in actors:
        name, member = actor.get("name") or "", actor.get("placement_group_id")
        if member:
            inside[member].add(actor.get("class_name") or "")
            owners[member] = _job(actor.get("job_id"), jobs)
        elif name.startswith(_REPLICA):
            found[f"{SERVED}{name.removeprefix(_REPLICA).partition('#')[0]}"].append(_own(actor))
        elif _own(actor) or "required_resources" not in actor:
            found[f"{actor.get('class_name')} of {_job(actor.get('job_id'), jobs)}"].append(_own(actor))
    for row in groups:
        if row.get("state") != "CREATED":
            continue
        key = row["placement_group_id"]
        what = row.get("name") or ", ".join(sorted(inside[key])) or key[:12]
        owner = owners.get(key) or _job(key[-_JOB_DIGITS:], jobs)
        name = f"placement group of {owner}: {what} in {len(row['bundles'])} bundles"
        found[name].append(add(list(row["bundles"].values())))
    for task in tasks:
        if _own(task) and not task.get("placement_group_id"):
            found[f"task {task.get('name')} of {_job(task.get('job_id'), jobs)}"].append(_own(task))
    rows = [Holder(name if len(parts) == 1 else f"{name} (x{len(parts)})", add(parts)) for name, parts in found.items()]
    return sorted(rows, key=lambda holder: -sum(holder.resources.get(name, 0.0) for name in ("CPU", "GPU")))


def demands() -> list[dict[str, float]]:
    """Return what tasks and actors wait for that are in no placement group; empty where Ray does not tell."""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.autoscaler.v2.sdk import get_cluster_resource_state  # 2.60 has no public call for pending demands

    try:
        state = get_cluster_resource_state(GcsClient(address=ray.get_runtime_context().gcs_address))
    except Exception:
        return []
    wanted = [(dict(each.request.resources_bundle), each.count) for each in state.pending_resource_requests]
    return [
        amounts
        for amounts, count in wanted
        if (amounts.get("CPU") or amounts.get("GPU")) and not any("_group_" in name for name in amounts)
        for _ in range(min(count, _MAX_DEMANDS))
    ]


def _is_trial(row: Mapping[str, Any]) -> bool:
    first = row["bundles"].get(0, {})
    return all(first.get(name) == amount for name, amount in TRIAL_MARK.items())


def _made_by(row: Mapping[str, Any], job_id: str | None) -> bool:
    return bool(row["placement_group_id"][-_JOB_DIGITS:] == job_id)


def _own(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: amount for name, amount in (row.get("required_resources") or {}).items() if name in {"CPU", "GPU"}}


def _job(job_id: str | None, jobs: Mapping[str, str]) -> str:
    entry = jobs.get(job_id or "")
    return f"job {job_id} ({entry})" if entry else f"job {job_id}"


def _listed(call: str, **options: Any) -> list[Any]:
    """Ask the state API, which needs the dashboard; an empty list without one."""
    import ray
    from ray.util import state

    address = str(ray.get_runtime_context().gcs_address)
    try:
        return list(
            getattr(state, call)(address, limit=1000, detail=True, timeout=5, raise_on_missing_output=False, **options)
        )
    except Exception:
        return []


def _picked(row: Any) -> dict[str, Any]:
    names = ("name", "class_name", "job_id", "required_resources", "placement_group_id")
    return {name: getattr(row, name, None) for name in names}
