"""Carry the trials of a previous sweep over into its fork.

Owns which trials are carried over, and writes them into the new study as ended ones; ``carried`` alone is pure. A trial
is a measurement of one configuration. It holds in the new sweep where the new space contains that configuration and
everything else that decides a result is unchanged.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from raymlops.config.changes import rule
from raymlops.config.shape import leaves
from raymlops.config.space import as_param, exists, same
from raymlops.config.yaml import dotted
from raymlops.records import IMPORTED_FROM
from raymlops.tuning.constraints import violations
from raymlops.tuning.search_space import draw_order
from raymlops.tuning.study.records import ATTRIBUTE, added, attribute, counted, history_of, record_of, repeat_of
from raymlops.tuning.study.storage import storage_errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.config.space import Distribution, Scalar
    from raymlops.records import Objective, TrialRecord

CARRIED = "raymlops.carried"
"""Attribute of a fork's study: all trials of the previous sweep have been written."""

_ABSENT = object()


def carried(old: ProjectSpec, new: ProjectSpec, *, record: TrialRecord) -> dict[str, Scalar] | str:
    """Return a trial's parameters in the new search space, or why the trial is not carried over.

    The trial's whole configuration counts, searched and fixed values alike: a fixed parameter may become a searched
    one, and the reverse. A conditional parameter that does not exist has the value of the new configuration.
    """
    if record.status == "failed":
        return "failed"
    space = new.sweep.space
    ran = _fields(old)
    for key, value in record.params.items():
        ran[key] = old.sweep.space[key].written(value) if key in old.sweep.space else value
    wanted = _fields(new)
    params: dict[str, Scalar] = {}
    for key in draw_order(space):
        if not exists(space[key], params):
            continue
        value = ran.get(key, _ABSENT)
        if value is _ABSENT or not space[key].can_be(value):
            return f"{key} outside the new space"
        params[key] = as_drawn(space[key], value)
    for key in dict.fromkeys([*wanted, *ran]):
        if key not in params and _decides(key) and not same(ran.get(key, _ABSENT), wanted.get(key, _ABSENT)):
            return f"{key} changed"
    return params


def carry_over(
    old: Any, *, old_spec: ProjectSpec, new_spec: ProjectSpec, sweep_id: str
) -> tuple[dict[str, Any], Counter[str]]:
    """Return an old study's trials as trials of the new one, by their source, and how many are left out, by reason.

    ``old_spec`` and ``sweep_id`` are of the old sweep.

    Raises:
        StorageError, UnreachableError: the database does not answer.
    """
    kept: dict[str, Any] = {}
    left: Counter[str] = Counter()
    before, objectives = old_spec.objectives, new_spec.objectives
    with storage_errors(f"Optuna's study {old.study_name}"):
        ended = [trial for trial in counted(old.get_trials(deepcopy=False)) if trial.state.is_finished()]
        for trial in ended:
            if repeat_of(trial) is not None:
                continue  # its configuration is carried over with the search's own trial
            record = record_of(trial, objectives=before)
            params = carried(old_spec, new_spec, record=record)
            if isinstance(params, str):
                left[params] += 1
                continue
            values = _values(record, before=before, objectives=objectives)
            broken = violations(record.metrics, constraints=new_spec.sweep.constraints)
            if values is None or not all(map(math.isfinite, broken.values())):
                left["did not report a metric of the new sweep"] += 1
                continue
            source = f"{IMPORTED_FROM}{old.study_name}/{record.number}" if added(trial) else record.carried_from
            new = replace(
                record,
                params=params,
                value=values[0],
                values=values if len(values) > 1 else (),
                feasible=all(excess <= 0 for excess in broken.values()),
                carried_from=source or f"{sweep_id}/{record.number}",
            )
            same_metric = before[0].metric == objectives[0].metric
            kept[new.carried_from] = as_carried(
                trial, new, broken=broken, space=new_spec.sweep.space, curve=same_metric
            )
    return kept, left


def add_carried(study: Any, carried_trials: Mapping[str, Any], *, mark: str = CARRIED) -> None:
    """Add the trials of ``carry_over`` to a new study. Idempotent: those that it has already are not added again.

    ``mark`` is the attribute that says that all have been written.

    Raises:
        StorageError, UnreachableError: the database does not answer.
    """
    with storage_errors(f"Optuna's study {study.study_name}"):
        known = {trial.user_attrs.get(ATTRIBUTE, {}).get("carried_from") for trial in study.get_trials(deepcopy=False)}
        for source, trial in carried_trials.items():
            if source not in known:
                study.add_trial(trial)
        study.set_user_attr(mark, True)


def distribution_of(distribution: Distribution) -> Any:
    """Return Optuna's distribution, equal to that of its ``suggest`` methods."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if distribution.kind == "categorical":
        return CategoricalDistribution(distribution.choices)
    if distribution.kind == "int":
        step = 1 if distribution.step is None else distribution.step
        return IntDistribution(distribution.low, distribution.high, log=distribution.log, step=step)
    return FloatDistribution(distribution.low, distribution.high, log=distribution.log, step=distribution.step)


def as_carried(
    trial: Any, record: TrialRecord, *, broken: Mapping[str, float], space: Mapping[str, Distribution], curve: bool
) -> Any:
    """Return the old trial (``FrozenTrial``) as a trial of the new study.

    Without its ``curve`` where that is of another metric: samplers read its last value.
    """
    from optuna.trial import create_trial

    several = bool(record.values)
    values = record.values or (record.value,)
    reported = trial.intermediate_values if curve else {}
    made = create_trial(
        state=trial.state,
        values=None if several and record.status == "pruned" else list(values),
        params=record.params,
        distributions={key: distribution_of(space[key]) for key in record.params},
        user_attrs={ATTRIBUTE: attribute(record, history_of(trial))},
        intermediate_values={} if several else dict(reported) or {record.epochs: record.value},
    )
    for key, excess in broken.items():
        made.set_constraint(key, excess)
    return made


def _values(
    record: TrialRecord, *, before: Sequence[Objective], objectives: Sequence[Objective]
) -> tuple[float, ...] | None:
    """Return a trial's value of each new objective; None where it did not report one."""
    known = dict(record.metrics)
    known |= {
        objective.metric: value
        for objective, value in zip(before, record.values or (record.value,), strict=False)
        if value is not None
    }
    values = tuple(known.get(objective.metric, math.nan) for objective in objectives)
    return values if all(map(math.isfinite, values)) else None


def _fields(spec: ProjectSpec) -> dict[str, Any]:
    """Return each field of ``train`` and of the recipe, and the workers of a trial, by path."""
    data = spec.to_dict()
    found = {dotted(path): value for path, value in leaves(data) if path[0] in {"train", "recipe"} and value != {}}
    return found | {"sweep.workers_per_trial": spec.sweep.workers_per_trial}


def _decides(path: str) -> bool:
    return not rule(tuple(path.split("."))).sweep


def as_drawn(distribution: Distribution, value: Any) -> Scalar:
    """Return the value in the type that Optuna gives it."""
    if distribution.kind == "categorical":
        return next(choice for choice in distribution.choices if same(choice, as_param(value)))
    return int(value) if distribution.kind == "int" else float(value)
