"""What a sweep optimizes, and how much of it there is: objectives, resource, trials, concurrency.

Pure: nodes are what the caller read.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from raymlops.cluster.fit import Ask, room
from raymlops.records import Objective
from raymlops.tuning.search_space import how_many

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.config.schema import ProjectSpec


def objectives_of(spec: ProjectSpec) -> tuple[Objective, ...]:
    """Return what the sweep optimises: one metric, or several as ``sweep.objectives`` has them."""
    section = spec.sweep
    if section.objectives:
        return tuple(Objective(metric, mode) for metric, mode in section.objectives.items())
    # train.mode holds for train.metric alone; check() refuses another metric without a mode of its own.
    return (Objective(section.metric or spec.train.metric, section.mode or spec.train.mode),)


def metric_of(spec: ProjectSpec) -> str:
    """Return the name of the metric that the sweep optimises, of several the first."""
    return objectives_of(spec)[0].metric


def mode_of(spec: ProjectSpec) -> Literal["min", "max"]:
    """Return whether that metric is to fall or to rise."""
    return objectives_of(spec)[0].mode


def max_resource(spec: ProjectSpec) -> float:
    """Return how much of ``sweep.resource`` a whole trial takes, of several lengths the longest.

    Infinity where nothing says it, which ``check`` refuses for schedulers that need to know.
    """
    section = spec.sweep
    if section.max_resource is not None:
        return section.max_resource
    lengths = {"epoch": ("train.epochs", spec.train.epochs), "step": ("train.max_steps", spec.train.max_steps)}
    key, length = lengths.get(section.resource, ("", None))
    found: Sequence[Any] = section.space[key].ends() if key in section.space else (length,)
    return math.inf if None in found else float(max(found))


def num_own_trials(spec: ProjectSpec) -> int:
    """Return how many trials the sweep is to try: ``num_trials``, or fewer where a grid has fewer points.

    Raises:
        UsageError: the grid has no end or too many points.
    """
    points = how_many(spec.sweep)
    return spec.sweep.num_trials if points is None else min(spec.sweep.num_trials, points)


def has_no_more(spec: ProjectSpec) -> bool:
    """Return whether more than ``num_trials`` would be no more: the grid has no other points."""
    points = how_many(spec.sweep)
    return points is not None and points <= spec.sweep.num_trials


def concurrency(spec: ProjectSpec, nodes: Sequence[Mapping[str, float]]) -> int:
    """Return how many trials run at a time: what the nodes hold, and no more than asked for.

    ``nodes`` are the resources of each that the sweep may use: those that are free, and those that it uses already. A
    trial of several workers is on as many nodes as it takes.
    """
    section = spec.train
    each = Ask(1, section.cpus_per_worker, section.gpus_per_worker)
    fits = int(room(each, nodes)) // spec.sweep.workers_per_trial
    # At least one: it waits for what others hold, or for the node that an autoscaler adds.
    return max(1, min(fits, spec.sweep.max_concurrent or fits, num_own_trials(spec)))
