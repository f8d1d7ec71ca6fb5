"""What an autoscaler may still add to the connected cluster.

Owns the finding of the autoscaler's configuration. Ray 2.60 has no call for it, so it is read where the
monitor of the head reads it. Decides nothing.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from raymlops.cluster.placement import WorkerRequest, room

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


_HEAD = "node:__internal_head__"
"""A resource of the head."""
_OF_A_NODE = re.compile("node[0-9a-f]{56}")


def may_grow(types: Iterable[str]) -> bool | None:
    """Return whether an autoscaler may add nodes, by the types of nodes that the head's monitor reports; None if none.

    Ray 2.60's monitor also reports without an autoscaler. It then names each node's type after the node's id, in a
    spelling that the dashboard changes; an autoscaler names a type of its configuration.
    """
    named = [name.lower().replace("_", "") for name in types]
    return None if not named else not all(_OF_A_NODE.fullmatch(name) for name in named)


def connected_cluster_may_grow() -> bool | None:
    """Return ``may_grow`` of the connected cluster."""
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental import internal_kv  # where the dashboard reads it; Ray 2.60 has no call for it

    status = internal_kv._internal_kv_get(DEBUG_AUTOSCALING_STATUS) if internal_kv._internal_kv_initialized() else None  # noqa: SLF001
    report = (json.loads(status) if status else {}).get("autoscaler_report") or {}
    types = [name for key in ("active_nodes", "idle_nodes") for name in report.get(key) or ()]
    return may_grow(types)


def autoscaler_growth(requested: WorkerRequest) -> list[dict[str, float]] | None:
    """Return the nodes that the autoscaler may still add; empty without one, None when its limit cannot be read."""
    return growth_by(autoscaler_config(), requested)


def growth_by(config: Mapping[str, Any] | None, requested: WorkerRequest) -> list[dict[str, float]] | None:
    """Return the same by a configuration that was read before."""
    import ray

    workers = [node["Resources"] for node in ray.nodes() if node["Alive"] and _HEAD not in node["Resources"]]
    return None if config is None else possible(config, workers=workers, requested=requested)


def autoscaler_config() -> dict[str, Any] | None:
    """Return the configuration of the head's autoscaler; empty without one, None when it cannot be read."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    head = next((node for node in ray.nodes() if node["Alive"] and _HEAD in node["Resources"]), None)
    if head is None:
        return {}
    pinned = NodeAffinitySchedulingStrategy(node_id=head["NodeID"], soft=False)
    task = ray.remote(num_cpus=0, max_retries=1)(_look).options(scheduling_strategy=pinned, name="raymlops.growth")
    address = ray.get_runtime_context().gcs_address
    try:
        config: dict[str, Any] | None = ray.get(task.remote(address), timeout=30)
    except Exception:  # not knowing must not reject what may fit
        return None
    return config


def possible(
    config: Mapping[str, Any], *, workers: Sequence[Mapping[str, float]], requested: WorkerRequest
) -> list[dict[str, float]]:
    """Return the nodes that a cluster launcher's configuration still allows beside the present ``workers``.

    Where its overall ``max_workers`` does not allow them all, the types that hold most of what is requested come first.
    """
    types = config.get("available_node_types") or {}
    present = dict.fromkeys(types, 0)
    for worker in workers:
        match = next((name for name in types if _same(types[name].get("resources") or {}, worker)), None)
        if match is not None:
            present[match] += 1
    more: list[dict[str, float]] = []
    for name, kind in types.items():
        # A missing limit of a type means the limit of the cluster.
        most = kind.get("max_workers", config.get("max_workers", 0))
        if name == config.get("head_node_type"):
            most = kind.get("max_workers", 0)
        more += [dict(kind.get("resources") or {})] * max(0, int(most) - present[name])
    more.sort(key=lambda node: -room(requested, [node]))
    return more[: max(0, int(config.get("max_workers", len(more))) - len(workers))]


def _same(kind: Mapping[str, float], worker: Mapping[str, float]) -> bool:
    return all(float(kind.get(name, 0)) == float(worker.get(name, 0)) for name in ("CPU", "GPU"))


def _look(gcs_address: str) -> dict[str, Any] | None:
    """Return the configuration of this head's autoscaler, empty without one, None where it cannot be read.

    Runs on the head.
    """
    import os
    from pathlib import Path

    import psutil
    from ruamel.yaml import YAML

    # KubeRay runs the autoscaler in a container of its own, and then starts the head without a monitor.
    if "--no-monitor" in os.environ.get("KUBERAY_GEN_RAY_START_CMD", ""):
        return None
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError, ValueError):
            command = process.cmdline()
            if (
                not any(part.endswith("monitor.py") for part in command)
                or f"--gcs-address={gcs_address}" not in command
            ):
                continue
            for part in command:
                name, _, file = part.partition("=")
                if name == "--autoscaling-config" and file:
                    text = Path(file).expanduser().read_text(encoding="utf-8")
                    return dict(YAML(typ="safe", pure=True).load(text))
    return {}
