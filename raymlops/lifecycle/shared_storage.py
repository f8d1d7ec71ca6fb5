"""What several machines must be able to reach is refused where it lives on one of them.

The rule is pure; what it asks about is gathered beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.config.paths import local_path
from raymlops.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.config.schema import ProjectSpec


def refuse_local_storage(spec: ProjectSpec, *, machines: int, databases: Mapping[str, str]) -> None:
    """Refuse a local folder that is not declared shared, and SQLite files, where the cluster has several machines.

    ``databases`` has the URL of each by the field that sets it.

    Raises:
        UsageError: naming every such field and what to write there.
    """
    if machines <= 1:
        return
    said, advice = [], []
    if local_path(spec.storage.path) is not None and not spec.storage.shared:
        said.append(f"storage.path is the folder {spec.storage.path}")
        advice.append(
            "Set storage.path to a URI such as s3://bucket/folder, or storage.shared: true where the path is the same "
            "folder on every node."
        )
    files = [field for field, url in databases.items() if url.startswith("sqlite")]
    said += [f"{field} is a SQLite file" for field in files]
    if files:
        places = {"tracking.uri": "an MLflow server"}
        advice.append(
            "; ".join(f"Set {field} to {places.get(field, 'a PostgreSQL URL')}" for field in files)
            + " ({env: NAME} for one with a password)."
        )
    if said:
        raise UsageError(f"the cluster has {machines} machines, but {', '.join(said)}", hint=" ".join(advice))


def check_sharing(spec: ProjectSpec) -> None:
    """Ask the connected cluster for its machines, and refuse what only one of them can reach.

    Raises:
        UsageError: as ``refuse_local_storage``.
        ConfigError: a reference to a database cannot be read.
    """
    import ray

    from raymlops.state.database import state_url
    from raymlops.tracking.client import tracking_uri

    # Several nodes may be processes of one machine, which share its disk.
    machines = len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]})
    if machines > 1:
        databases = {"tracking.uri": tracking_uri(spec), "storage.state": state_url(spec)}
        refuse_local_storage(spec, machines=machines, databases=databases)
