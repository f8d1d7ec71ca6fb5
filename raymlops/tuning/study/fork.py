"""Carry the trials of a previous sweep over into its fork.

Owns which trials are carried over, and writes them into the new study as ended ones; ``carried`` alone is pure. A trial
is a measurement of one configuration. It holds in the new sweep where the new space contains that configuration and
everything else that decides a result is unchanged.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from raymlops.config.changes import rule
from raymlops.config.space import exists
from raymlops.tuning.objectives import objectives_of
from raymlops.tuning.search_space import draw_order
from raymlops.tuning.study.records import ATTRIBUTE, attribute, history_of, record_of
from raymlops.tuning.study.selection import violations
from raymlops.tuning.study.storage import quiet_optuna, storage_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.config.space import Distribution, Scalar
    from raymlops.records import Objective, TrialRecord

_ABSENT = object()


def carried(old: ProjectSpec, new: ProjectSpec, *, record: TrialRecord) -> dict[str, Scalar] | str:
    """Return a trial's parameters in the new search space, or why the trial is not carried over.

    The trial's whole configuration counts, searched and fixed values alike: a fixed parameter may become a searched
    one, and the reverse. A conditional parameter that does not exist has the value of the new configuration.
    """
    if record.status == "failed":
        return "failed"
    space = new.sweep.space
    ran = {**_fields(old), **record.params}
    wanted = _fields(new)
    params: dict[str, Scalar] = {}
    for key in draw_order(space):
        if not exists(space[key], params):
            continue
        value = ran.get(key, _ABSENT)
        if value is _ABSENT or not space[key].can_be(value):
            return f"{key} outside the new space"
        params[key] = _as_drawn(space[key], value)
    for key in dict.fromkeys([*wanted, *ran]):
        if key not in params and _decides(key) and not _same(ran.get(key, _ABSENT), wanted.get(key, _ABSENT)):
            return f"{key} changed"
    return params


def add_carried(
    study: Any,
    old: Any,
    *,
    old_spec: ProjectSpec,
    new_spec: ProjectSpec,
    sweep_id: str,
    objectives: Sequence[Objective],
) -> tuple[int, dict[str, int]]:
    """Copy an old study's trials into a new one. Return how many were, and how many were not, by reason.

    Idempotent: trials that the new study has already are not added again.

    Args:
        study: the new Optuna study.
        old: the old one.
        old_spec: the configuration of its sweep.
        new_spec: the new configuration.
        sweep_id: of the old sweep.
        objectives: of the new sweep.

    Raises:
        StorageError, UnreachableError: one of the databases does not answer.
    """
    left: Counter[str] = Counter()
    before = objectives_of(old_spec)
    with quiet_optuna(), storage_errors(f"Optuna's study {old.study_name}"):
        found = [trial for trial in old.get_trials(deepcopy=False) if trial.state.is_finished()]
    with quiet_optuna(), storage_errors(f"Optuna's study {study.study_name}"):
        known = {
            record_of(trial, objectives=objectives).carried_from
            for trial in study.get_trials(deepcopy=False)
            if trial.state.is_finished()
        }
        kept = 0
        for trial in found:
            record = record_of(trial, objectives=before)
            source = record.carried_from or f"{sweep_id}/{record.number}"
            params = carried(old_spec, new_spec, record=record)
            if isinstance(params, str):
                left[params] += 1
                continue
            values = _values(record, before=before, objectives=objectives)
            broken = violations(record.metrics, constraints=new_spec.sweep.constraints)
            if values is None or not all(map(math.isfinite, broken.values())):
                left["did not report a metric of the new sweep"] += 1
                continue
            kept += 1
            if source not in known:
                made = _made(
                    trial,
                    record,
                    source=source,
                    params=params,
                    values=values,
                    broken=broken,
                    space=new_spec.sweep.space,
                    same_metric=before[0].metric == objectives[0].metric,
                )
                study.add_trial(made)
    return kept, dict(left)


def distribution_of(distribution: Distribution) -> Any:
    """Return Optuna's distribution, equal to that of its ``suggest`` methods."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if distribution.kind == "categorical":
        return CategoricalDistribution(distribution.choices)
    if distribution.kind == "int":
        step = 1 if distribution.step is None else distribution.step
        return IntDistribution(distribution.low, distribution.high, log=distribution.log, step=step)
    return FloatDistribution(distribution.low, distribution.high, log=distribution.log, step=distribution.step)


def _made(
    trial: Any,
    record: TrialRecord,
    *,
    source: str,
    params: Mapping[str, Scalar],
    values: tuple[float, ...],
    broken: Mapping[str, float],
    space: Mapping[str, Distribution],
    same_metric: bool,
) -> Any:
    """Return the old trial (``FrozenTrial``) as a trial of the new study."""
    from optuna.trial import create_trial

    several = len(values) > 1
    # Samplers read a curve's last value; a curve of another metric is left out.
    curve = trial.intermediate_values if same_metric else {}
    kept = replace(
        record,
        params=dict(params),
        value=values[0],
        values=values if several else (),
        feasible=all(excess <= 0 for excess in broken.values()),
        carried_from=source,
    )
    made = create_trial(
        state=trial.state,
        values=None if several and record.status == "pruned" else list(values),
        params=dict(params),
        distributions={key: distribution_of(space[key]) for key in params},
        user_attrs={ATTRIBUTE: attribute(kept, history_of(trial))},
        intermediate_values={} if several else dict(curve) or {record.epochs: values[0]},
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
    found = {path: value for section in ("train", "recipe") for path, value in _leaves(data[section], section)}
    return found | {"sweep.workers_per_trial": spec.sweep.workers_per_trial}


def _decides(path: str) -> bool:
    return not rule(tuple(path.split("."))).sweep


def _leaves(data: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(data, Mapping):
        yield path, data
        return
    for key, value in data.items():
        yield from _leaves(value, f"{path}.{key}")


def _same(one: Any, other: Any) -> bool:
    # In Python True equals 1; in a configuration they are different values.
    return bool(one == other) and isinstance(one, bool) is isinstance(other, bool)


def _as_drawn(distribution: Distribution, value: Any) -> Scalar:
    """Return the value in the type that Optuna gives it."""
    if distribution.kind == "categorical":
        return next(choice for choice in distribution.choices if _same(choice, value))
    return int(value) if distribution.kind == "int" else float(value)
