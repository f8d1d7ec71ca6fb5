"""Checks of a sweep's configuration before anything starts. They need no cluster and no data."""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any

from raymlops.config.sweep import HALVING
from raymlops.errors import ConfigError, UsageError, describe
from raymlops.tuning.search_space import LISTED, later_points, num_trials, whole_starts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.config.schema import ProjectSpec
    from raymlops.project import Project

_DRAWS = 64
"""Random points of which one must be valid: where one in twenty is, all are invalid in 4 sweeps of 100."""
_KNOWN = 2_000
"""Grid or Sobol points of which one must be valid; each check takes a millisecond."""


def check(project: Project) -> None:
    """Reject an invalid sweep.

    Raises:
        UsageError: the space is empty, or has no point that the recipe accepts; a metric without
            its mode; a budget or a target that no trial can reach; a scheduler that does not know a trial's length; an
            imported sampler that is none, or that a resume could not continue.
    """
    spec = project.spec
    if not spec.sweep.space:
        raise UsageError(
            "sweep.space is empty: there is nothing to search",
            hint="Write for example sweep: {space: {train.lr: {float: [1e-4, 1e-1], log: true}}}.",
        )
    found: list[UsageError] = []
    for rule in (_check_metric, _check_target, _check_resource, _check_budgets):
        try:
            rule(spec)
        except UsageError as error:
            found.append(error)
    if len(found) > 1:
        hints = dict.fromkeys(error.hint for error in found if error.hint)
        raise UsageError("\n".join(error.message for error in found), hint=" ".join(hints))
    if found:
        raise found[0]
    _check_points(project)
    _check_sampler(spec)


def _check_sampler(spec: ProjectSpec) -> None:
    from raymlops.tuning.study.sampler_trial import try_sampler

    try_sampler(spec.sweep, objectives=spec.objectives)


def _check_metric(spec: ProjectSpec) -> None:
    section = spec.sweep
    if section.metric not in {None, spec.train.metric} and section.mode is None:
        raise UsageError(
            f"sweep.metric is {section.metric!r}, not train.metric ({spec.train.metric!r}), and sweep.mode is not set",
            hint="Write sweep.mode: min or max.",
        )


def _check_target(spec: ProjectSpec) -> None:
    target, metric = spec.sweep.target, spec.objectives[0].metric
    kept = spec.sweep.constraints.get(metric)
    if target is None or kept is None:
        return
    least, most = -math.inf if kept.min is None else kept.min, math.inf if kept.max is None else kept.max
    if not least <= target <= most:
        bound = f"at least {least:g}" if target < least else f"at most {most:g}"
        raise UsageError(
            f"sweep.target is {target:g}, but sweep.constraints requires {metric} to be {bound}: "
            "a trial that reaches the target breaks the constraint",
            hint="Change one of them, or remove the target.",
        )


def _check_resource(spec: ProjectSpec) -> None:
    section, scheduler, whole = spec.sweep, spec.sweep.scheduler, spec.trial_length
    if scheduler != "none" and section.resource == "epoch" and spec.train.eval_every_steps is not None:
        raise UsageError(
            f"sweep.resource is epoch, but a trial reports every {spec.train.eval_every_steps} steps "
            "(train.eval_every_steps)",
            hint="Set sweep.resource: step, and train.max_steps or sweep.max_resource.",
        )
    if scheduler in HALVING and whole == math.inf:
        raise UsageError(
            f"sweep.resource is {section.resource!r}, and the length of a whole trial is not set, "
            f"which {scheduler} needs",
            hint="Set sweep.resource: step, which goes by train.max_steps; or train.epochs, or sweep.max_resource."
            if section.resource == "epoch"
            else "Set train.max_steps or sweep.max_resource.",
        )
    if scheduler != "none" and section.grace_period > whole:
        raise UsageError(
            f"sweep.grace_period is {section.grace_period:g}, longer than a whole trial: {whole:g} "
            f"({section.resource}), so {scheduler} would never stop one",
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
    """Reject start points that the recipe rejects, and a space without a point that it accepts."""
    sweep = project.spec.sweep
    for index, start in whole_starts(sweep).items():
        if reason := _rejection(project, start):
            raise UsageError(f"sweep.enqueue[{index}] is rejected: {reason}", hint="Change or remove it.")
    # A sampler's known points are exactly those that the sweep tries; random ones may miss the few valid ones.
    known = sweep.sampler in LISTED
    rejected = []
    for params in islice(later_points(sweep), _KNOWN if known else _DRAWS):
        if not (reason := _rejection(project, params)):
            return
        rejected.append((params, reason))
    if not rejected:
        return
    tried, left = len(rejected), num_trials(sweep) - len(sweep.enqueue)
    if known:
        which = f"the first {tried:,} of {left:,}" if tried < left else f"all {tried:,}"
        problem = f"the recipe accepts no point of sampler {sweep.sampler}: {which}"
    else:
        problem = f"the recipe accepts no point of sweep.space: all {tried} random ones"
    ((reason, count),) = Counter(reason for _, reason in rejected).most_common(1)
    shown = ", ".join(f"{key}={value}" for key, value in rejected[0][0].items())
    raise UsageError(
        f"{problem} are rejected, {count:,} of them with: {reason}\n  for example {shown}",
        hint="Change the ranges, or make a parameter depend on another with when: {key.path: value}.",
    )


def _rejection(project: Project, params: Mapping[str, Any]) -> str:
    """Return why the recipe's configuration rejects a point; empty where it accepts it."""
    try:
        project.with_params(params)
    except ConfigError as error:
        problem = error.problems[0]
        return f"{problem.path}: {problem.message}" if problem.path else problem.message
    except Exception as error:  # a recipe's own validator may raise anything
        return describe(error)
    return ""
