"""What a sweep refuses before anything starts, and what follows from its configuration and the cluster's size.

Nodes are what the caller read.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any

from raymlops.config.space import exists
from raymlops.config.sweep import HALVING
from raymlops.errors import ConfigError, UsageError, describe
from raymlops.tuning.objectives import (
    max_resource,
    metric_of,
    num_own_trials,
)
from raymlops.tuning.search_space import by_chance, draw_order, point
from raymlops.tuning.study.storage import without_credentials

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from raymlops.config.schema import ProjectSpec
    from raymlops.config.space import Distribution
    from raymlops.project import Project

_DRAWS = 64
"""Random points of which one must hold: where it is one in twenty, all of them fail in 4 sweeps of 100."""
_LISTED = 2_000
"""Points that are fixed in advance of which one must hold; a check of each takes a millisecond."""


def check(project: Project) -> None:
    """Refuse a sweep that cannot be: needs no cluster and no data, so that it can be asked before either is there.

    Raises:
        UsageError: the space is empty, has no order, or no point that the recipe takes; a metric changes without its
            mode; a budget or a target that nothing can reach; a scheduler that cannot tell how long a trial is.
    """
    spec = project.spec
    if not spec.sweep.space:
        raise UsageError(
            "sweep.space is empty: there is nothing to search",
            hint="Write for example sweep: {space: {train.lr: {float: [1e-4, 1e-1], log: true}}}.",
        )
    draw_order(spec.sweep.space)
    _check_metric(spec)
    _check_target(spec)
    _check_resource(spec)
    _check_budgets(spec)
    num_own_trials(spec)
    _check_points(project)


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


def _check_metric(spec: ProjectSpec) -> None:
    section = spec.sweep
    if section.metric not in {None, spec.train.metric} and section.mode is None:
        raise UsageError(
            f"sweep.metric is {section.metric!r}, not train.metric ({spec.train.metric!r}), "
            "and sweep.mode does not say whether it is to fall or to rise",
            hint="Write sweep.mode: min or max.",
        )


def _check_target(spec: ProjectSpec) -> None:
    target, metric = spec.sweep.target, metric_of(spec)
    kept = spec.sweep.constraints.get(metric)
    if target is None or kept is None:
        return
    least, most = -math.inf if kept.min is None else kept.min, math.inf if kept.max is None else kept.max
    if not least <= target <= most:
        bound = f"at least {least:g}" if target < least else f"at most {most:g}"
        raise UsageError(
            f"sweep.target is {target:g}, but sweep.constraints wants {metric} to be {bound}: "
            "a trial that reaches the one breaks the other",
            hint="Change one of them, or leave the target out.",
        )


def _check_resource(spec: ProjectSpec) -> None:
    section, scheduler, whole = spec.sweep, spec.sweep.scheduler, max_resource(spec)
    if scheduler in HALVING and whole == math.inf:
        raise UsageError(
            f"sweep.resource is {section.resource!r}, and nothing says how much of it a whole trial takes, "
            f"which {scheduler} needs to know",
            hint="Set train.max_steps or sweep.max_resource.",
        )
    if scheduler != "none" and section.grace_period > whole:
        raise UsageError(
            f"sweep.grace_period is {section.grace_period:g}, more than a whole trial takes: {whole:g} "
            f"({section.resource}), so that {scheduler} would never stop one",
            hint=f"Set sweep.grace_period to at most {whole:g}, or sweep.scheduler to none.",
        )


def _check_budgets(spec: ProjectSpec) -> None:
    section = spec.sweep
    if spec.train.gpus_per_worker > 0 or "train.gpus_per_worker" in section.space:
        return
    if section.max_gpu_hours is not None:
        raise UsageError(
            f"sweep.max_gpu_hours is {section.max_gpu_hours:g}, but trials reserve no GPU: train.gpus_per_worker is 0",
            hint="Set train.gpus_per_worker, or limit sweep.max_cpu_hours instead.",
        )
    if section.max_cost is not None and not section.price.cpu_hour:
        raise UsageError(
            f"sweep.max_cost is {section.max_cost:g}, but trials cost nothing: they reserve no GPU "
            "(train.gpus_per_worker is 0), and sweep.price.cpu_hour is 0",
            hint="Set sweep.price.cpu_hour, or train.gpus_per_worker.",
        )


def _check_points(project: Project) -> None:
    """Refuse start points that the recipe does not take, and a space where no point is found that it takes."""
    sweep = project.spec.sweep
    for index in range(len(sweep.enqueue)):
        start = point(sweep, index) or {}
        if _whole(start, sweep.space) and (reason := _refusal(project, start)):
            raise UsageError(f"sweep.enqueue[{index}] is refused: {reason}", hint="Change it, or leave it out.")
    points, problem = _beside_starts(project.spec)
    reasons: Counter[str] = Counter()
    first: Mapping[str, Any] = {}
    for params in points:
        reason = _refusal(project, params)
        if not reason:
            return
        first = first or params
        reasons[reason] += 1
    if not reasons:
        return
    ((reason, count),) = reasons.most_common(1)
    shown = ", ".join(f"{key}={value}" for key, value in first.items())
    raise UsageError(
        f"{problem} are refused, {count:,} of them with: {reason}\n  for example {shown}",
        hint="Change the ranges, or make a parameter depend on another with when: {key.path: value}.",
    )


def _beside_starts(spec: ProjectSpec) -> tuple[Iterable[Mapping[str, Any]], str]:
    """Return points that the sweep may try beside its start points, and what is wrong where the recipe takes none."""
    sweep, starts = spec.sweep, len(spec.sweep.enqueue)
    left = num_own_trials(spec) - starts
    if sweep.sampler not in {"grid", "qmc"}:
        drawn = islice(by_chance(sweep.space, seed=sweep.seed), _DRAWS if left > 0 else 0)
        return drawn, f"sweep.space holds no point that the recipe takes: all {_DRAWS} drawn at random"
    # These very points are tried; chance may miss the few among them that hold.
    listed = min(left, _LISTED)
    which = f"the first {listed:,} of {left:,}" if listed < left else f"all {listed:,}"
    problem = f"sampler {sweep.sampler} tries no point that the recipe takes: {which}"
    return (point(sweep, index) or {} for index in range(starts, starts + listed)), problem


def _whole(params: Mapping[str, Any], space: Mapping[str, Distribution]) -> bool:
    """Say whether a start point leaves nothing to chance: what is drawn beside others may make it hold or not."""
    return all(key in params or not exists(searched, params) for key, searched in space.items())


def _refusal(project: Project, params: Mapping[str, Any]) -> str:
    """Return why the recipe's configuration refuses a point; empty where it takes it."""
    try:
        project.with_params(params)
    except ConfigError as error:
        problem = error.problems[0]
        return f"{problem.path}: {problem.message}" if problem.path else problem.message
    except Exception as error:  # a recipe's own validator may raise anything
        return describe(error)
    return ""
