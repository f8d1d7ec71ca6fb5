"""A version's bundle on the disks of the nodes before the version is wanted, so that its replicas only have to load it.

Owns which nodes fetch it, and which versions have no bundle any more. A bundle in a folder is read where it is, by
every node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raymlops.bundle.verify import read_manifest
from raymlops.config.paths import local_path
from raymlops.errors import BundleError, ClusterError, NotFoundError, RaymlopsError, StorageError
from raymlops.lifecycle.live.lineup import previous_champion
from raymlops.serving.control.render import settings_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.config.serve import ServeSection
    from raymlops.records import BundleRef
    from raymlops.state.audit import AuditEvent
    from raymlops.state.store import Deployment, Model

Fetch = Callable[["ProjectSpec", "BundleRef", "ServeSection"], None]
"""Fetches a bundle where replicas with these settings may start."""


def stage(
    spec: ProjectSpec,
    standing: Sequence[Deployment],
    new: Deployment,
    *,
    fetch: Fetch,
) -> tuple[str, ...]:
    """Fetch the bundle of a version that is not up yet to every node that can hold a replica, and verify it there.

    Return a warning if the nodes cannot be asked, or take longer than a version may to come up: its replicas fetch the
    bundle then, as those on later nodes do.

    Raises:
        BundleError, StorageError: a node cannot fetch it, so that no replica could.
    """
    if local_path(new.bundle.uri) is not None or any(item.bundle == new.bundle for item in standing):
        return ()
    try:
        fetch(spec, new.bundle, settings_of(new))
    except ClusterError as error:
        return (f"the bundle was not fetched beforehand, so that the version comes up later: {error.message}",)
    return ()


def gone(
    model: Model,
    changes: Callable[[], Iterable[AuditEvent]],
    *,
    check: Callable[[str, str], object] = read_manifest,
) -> dict[int, str]:
    """Return the earlier champions that a rollback passes over, each with what is wrong with its bundle.

    ``changes`` reads those of the route, newest first. A version that is up is not passed over, and a storage that does
    not answer is no reason.
    """
    found: dict[int, str] = {}
    while True:
        try:
            target = previous_champion(model.deployments, changes(), found)
        except NotFoundError:  # which the change raises, if it is so by then
            return found
        try:
            if model.item(target.version) is None:
                check(target.bundle.uri, target.bundle.digest)
        except BundleError as error:
            found[target.version] = error.message
        except StorageError:
            return found
        else:
            return found


def holding(nodes: Iterable[Mapping[str, Any]], settings: ServeSection) -> list[str]:
    """Return the ids of the nodes, as ``ray.nodes`` has them, that are large enough for a replica."""
    each = {
        "CPU": settings.cpus_per_replica,
        "GPU": settings.gpus_per_replica,
        "memory": settings.memory_bytes or 0,
        **settings.resources_per_replica,
    }
    alive = (node for node in nodes if node["Alive"])
    return [
        node["NodeID"]
        for node in alive
        if all(node["Resources"].get(name, 0.0) >= amount for name, amount in each.items())
    ]


def fetch_on_nodes(spec: ProjectSpec, bundle: BundleRef, settings: ServeSection) -> None:
    """Fetch a bundle on every node that can hold a replica, at once, and verify it there.

    Raises:
        BundleError, StorageError: a node cannot fetch it.
        ClusterError: a node does not answer, or not within ``ready_timeout_s``.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from raymlops.bundle.verify import fetch
    from raymlops.cluster.connect import connect, find

    if not ray.is_initialized() and find(spec)[0] is None:
        raise ClusterError("only the dashboard of the cluster can be reached from here")
    with connect(spec):
        task = ray.remote(num_cpus=0, max_retries=1)(fetch)
        fetching = [
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                bundle.uri, bundle.digest
            )
            for node in holding(ray.nodes(), settings)
        ]
        try:
            ray.get(fetching, timeout=settings.ready_timeout_s)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RaymlopsError):
                raise error.cause from error
            raise ClusterError(f"a node does not fetch it: {error.cause!r}") from error
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
            raise ClusterError(f"a node does not fetch it: {type(error).__name__}") from error
        finally:
            # Not one that has answered: Ray ends this process where it gets the answer just before (2.60,
            # ``TaskManager::CompletePendingTask``: "Check failed: it != submissible_tasks_.end()").
            left = ray.wait(fetching, num_returns=len(fetching), timeout=0)[1] if fetching else []
            for one in left:
                ray.cancel(one)
