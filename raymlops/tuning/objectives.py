"""The objectives of a sweep, the length and number of its trials, and its concurrency. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from raymlops.cluster.placement import WorkerRequest, room
from raymlops.records import Objective
from raymlops.tuning.search_space import how_many

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.config.schema import ProjectSpec


def objectives_of(spec: ProjectSpec) -> tuple[Objective, ...]:
    """Return the objectives: one metric, or those of ``sweep.objectives``."""
    section = spec.sweep
    if section.objectives:
        return tuple(Objective(metric, mode) for metric, mode in section.objectives.items())
    # train.mode belongs to train.metric; check() rejects another metric without its own mode.
    return (Objective(section.metric or spec.train.metric, section.mode or spec.train.mode),)


def max_resource(spec: ProjectSpec) -> float:
    """Return the length of a whole trial in ``sweep.resource``, of several lengths the longest.

    Infinity where it is not set, which ``check`` rejects for schedulers that need it.
    """
    section = spec.sweep
    if section.max_resource is not None:
        return section.max_resource
    lengths = {"epoch": ("train.epochs", spec.train.epochs), "step": ("train.max_steps", spec.train.max_steps)}
    key, length = lengths.get(section.resource, ("", None))
    found: Sequence[Any] = section.space[key].ends() if key in section.space else (length,)
    return math.inf if None in found else float(max(found))


def num_own_trials(spec: ProjectSpec) -> int:
    """Return the number of trials: ``num_trials``, or fewer where a grid has fewer points.

    Raises:
        UsageError: the grid is too large.
    """
    points = how_many(spec.sweep)
    return spec.sweep.num_trials if points is None else min(spec.sweep.num_trials, points)


def concurrency(spec: ProjectSpec, nodes: Sequence[Mapping[str, float]]) -> int:
    """Return how many trials run at a time: as many as fit on the nodes, at most ``max_concurrent``.

    ``nodes`` are the resources that the sweep may use on each node: free ones, and those that it uses already. A trial
    of several workers may span nodes.
    """
    section = spec.train
    each = WorkerRequest(1, section.cpus_per_worker, section.gpus_per_worker)
    fits = int(room(each, nodes)) // spec.sweep.workers_per_trial
    # At least one: it waits for resources that others hold, or for a node that an autoscaler adds.
    return max(1, min(fits, spec.sweep.max_concurrent or fits, num_own_trials(spec)))
