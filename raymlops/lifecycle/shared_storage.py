"""Reject storage that only one of several machines can reach: the rule, and the inputs that it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.config.paths import local_path
from raymlops.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.serving.control.rest_api import Room


def refuse_local_storage(
    spec: ProjectSpec, *, machines: int, databases: Mapping[str, str], uris: Sequence[str] = (), grows: bool = False
) -> None:
    """Reject local folders that are not declared shared, and SQLite files, on a cluster of several machines.

    One that ``grows`` has several as soon as its autoscaler adds the nodes that this command needs. ``databases`` has
    the URL of each by the field that sets it, ``uris`` the places of a command's own files.

    Raises:
        UsageError: naming every such field or folder, and what to set instead.
    """
    if machines <= 1 and not grows:
        return
    problems, advice = [], []
    if not spec.storage.shared:
        local = [f"storage.path is the folder {spec.storage.path}"] if local_path(spec.storage.path) else []
        local += [f"{uri} is a local folder" for uri in uris if local_path(uri)]
        problems += local
        shared = "or storage.shared: true if every node mounts the path."
        advice += [f"Use a URI such as s3://bucket/folder, {shared}"] if local else []
    files = [field for field, url in databases.items() if url.startswith("sqlite")]
    problems += [f"{field} is a SQLite file" for field in files]
    if files:
        servers = {"tracking.uri": "an MLflow server"}
        advice.append(
            "; ".join(f"Set {field} to {servers.get(field, 'a PostgreSQL URL')}" for field in files)
            + " ({env: NAME} for one with a password)."
        )
    if problems:
        which = f"the cluster has {machines} machines" if machines > 1 else "the cluster's autoscaler may add machines"
        raise UsageError(f"{which}, but {', '.join(problems)}", hint=" ".join(advice))


def check_sharing(spec: ProjectSpec, *uris: str, databases: Mapping[str, str] | None = None) -> None:
    """Ask the connected cluster for its machines, and reject what only one of them can reach.

    ``databases`` are those of a command beside MLflow's and the state's, ``uris`` the places of its own files.

    Raises:
        UsageError: as ``refuse_local_storage``.
        ConfigError: a reference to a database cannot be read.
    """
    import ray

    from raymlops.cluster.autoscaler import connected_cluster_may_grow

    # Several nodes may be processes of one machine, which share its disk.
    machines = len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]})
    grows = machines <= 1 and connected_cluster_may_grow() is True
    if machines > 1 or grows:
        used = {**_databases(spec), **(databases or {})}
        refuse_local_storage(spec, machines=machines, databases=used, uris=uris, grows=grows)


def check_sharing_of_deployments(spec: ProjectSpec, room: Room) -> None:
    """Reject what only one machine of a cluster can reach, before a version is brought up on it; raises as above."""
    machines, grows = len({node["node_ip"] for node in room.nodes}), room.grows is True
    if machines > 1 or grows:
        refuse_local_storage(spec, machines=machines, databases=_databases(spec), grows=grows)


def _databases(spec: ProjectSpec) -> dict[str, str]:
    from raymlops.state.database import state_url
    from raymlops.tracking.client import tracking_uri

    found = {"tracking.uri": tracking_uri(spec)}
    try:
        found["storage.state"] = state_url(spec)
    except ConfigError:
        if spec.storage.state is None:
            raise
        # Its credentials are on the head alone: a job that does not use the state runs without them.
    return found
