"""What a sweep refuses before anything starts, and what follows from its configuration and the cluster's size.

Pure: nodes are what ``ray.nodes()`` gave the caller.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from raymlops.errors import UsageError
from raymlops.tuning.space import draw_order
from raymlops.tuning.storage import without_credentials

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.project import Project


def metric_of(spec: ProjectSpec) -> str:
    """Return the name of the metric that the sweep optimises."""
    return spec.sweep.metric or spec.train.metric


def mode_of(spec: ProjectSpec) -> str:
    """Return whether the sweep's metric is to fall or to rise: ``train.mode`` holds for ``train.metric`` alone."""
    return spec.sweep.mode or spec.train.mode


def check(project: Project) -> None:
    """Refuse a sweep that cannot be: needs no cluster, so that it can be asked before one is started.

    Raises:
        UsageError: the space is empty, its conditions form a circle, or the metric changes without its mode.
    """
    section = project.spec.sweep
    if not section.space:
        raise UsageError(
            "sweep.space is empty: there is nothing to search",
            hint="Write for example sweep: {space: {train.lr: {float: [1e-4, 1e-1], log: true}}}.",
        )
    draw_order(section.space)
    if section.metric not in {None, project.spec.train.metric} and section.mode is None:
        raise UsageError(
            f"sweep.metric is {section.metric!r}, not train.metric ({project.spec.train.metric!r}), "
            "and sweep.mode does not say whether it is to fall or to rise",
            hint="Write sweep.mode: min or max.",
        )


def slots(nodes: Sequence[Mapping[str, Any]], *, cpus: float, gpus: float) -> int:
    """Return how many trials fit on living nodes (as ``ray.nodes()`` gives them) at once, each on one node."""
    total = 0
    for node in nodes:
        resources = node["Resources"]
        # 1.2 CPUs hold six trials of 0.2, which floating point says is 5.999...
        fits = [
            math.floor(resources.get(name, 0.0) / share + 1e-9)
            for name, share in (("CPU", cpus), ("GPU", gpus))
            if share
        ]
        total += min(fits, default=0)
    return total


def refuse_sqlite(url: str, *, nodes: int) -> None:
    """Refuse a SQLite file where the cluster has several nodes.

    Raises:
        UsageError: saying what to set instead.
    """
    if nodes > 1 and url.startswith("sqlite"):
        raise UsageError(
            f"storage.optuna is {without_credentials(url)}, and the cluster has {nodes} nodes: "
            "a SQLite file lives on one",
            hint="Set storage.optuna to a PostgreSQL URL, as {env: NAME} where it holds a password.",
        )


def concurrency(spec: ProjectSpec, nodes: Sequence[Mapping[str, Any]]) -> int:
    """Return how many trials run at a time: what the nodes hold, and no more than asked for."""
    section = spec.train
    fits = slots(nodes, cpus=section.cpus_per_worker, gpus=section.gpus_per_worker)
    # At least one: an autoscaler may add the node that holds it.
    return max(1, min(fits, spec.sweep.max_concurrent or fits, spec.sweep.num_trials))
