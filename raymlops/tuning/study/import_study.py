"""Import the trials of a study that another program wrote, as history for the sampler of a new sweep.

Owns which trials are imported, how their parameters are found in the space, and that a trial which another program adds
to a sweep's own study is no point outside the space. A complete trial is a measurement of one point, where it has a
value for every parameter that exists there and for no other one. Nothing else about it is known, and there is no run of
it, so that it never wins and counts in no limit.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from raymlops.config.space import exists
from raymlops.errors import UsageError, describe
from raymlops.records import IMPORTED_FROM, TrialRecord
from raymlops.tuning.constraints import metrics_of
from raymlops.tuning.search_space import draw_order
from raymlops.tuning.study.fork import as_carried, as_drawn
from raymlops.tuning.study.records import added, repeat_of
from raymlops.tuning.study.storage import storage_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.config.schema import ProjectSpec
    from raymlops.config.space import Distribution, Scalar

IMPORTED = "raymlops.imported"
"""Attribute of a sweep's study: all trials of ``sweep.import_study`` have been written."""


def import_trials(study: Any, *, spec: ProjectSpec) -> tuple[dict[str, Any], Counter[str]]:
    """Return a study's trials as trials of a sweep, by their source, and how many are left out, by reason.

    Raises:
        UsageError: its directions are not those of the sweep's objectives.
        StorageError, UnreachableError: the database does not answer.
    """
    kept: dict[str, Any] = {}
    left: Counter[str] = Counter()
    name = study.study_name
    with storage_errors(f"Optuna's study {name}"):
        _check_directions(study, spec=spec)
        for trial in study.get_trials(deepcopy=False):
            source = f"{IMPORTED_FROM}{name}/{trial.number}"
            try:
                made = _imported(trial, spec=spec, source=source)
            # Attributes may hold anything.
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                made = f"its attributes cannot be read: {describe(error)}"
            if isinstance(made, str):
                left[made] += 1
            else:
                kept[source] = made
    return kept, left


def end_outside(study: Any, *, space: Mapping[str, Distribution]) -> list[str]:
    """Fail the waiting and running trials that another program added to a sweep's study outside its space.

    Return why, for each. Optuna trains such a point as it is; it could win, and no plot of the study could be drawn.

    Raises:
        StorageError, UnreachableError: the database does not answer.
    """
    from optuna.trial import TrialState

    ended = []
    with storage_errors(f"Optuna's study {study.study_name}"):
        for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING)):
            given = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            odd = [key for key, value in given.items() if key in space and not space[key].can_be(value)]
            if odd and added(trial):
                # Optuna's ``tell`` refuses a trial that waits.
                study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)  # noqa: SLF001
                ended.append(f"trial {trial.number}: {odd[0]} is {given[odd[0]]!r}")
    return ended


def point_of(
    params: Mapping[str, Any], space: Mapping[str, Distribution], *, names: Mapping[str, str]
) -> dict[str, Scalar] | str:
    """Return the parameters of another study in a space, or why they are no point of it.

    ``names`` are keys of the space by name there. Any other name is a key itself, or the last part of one.
    """
    by_last: dict[str, list[str]] = {}
    for key in space:
        by_last.setdefault(key.rpartition(".")[2], []).append(key)
    ran: dict[str, Any] = {}
    for name, value in params.items():
        near = by_last.get(name, [])
        key = names.get(name, name if name in space else near[0] if len(near) == 1 else "")
        if not key:
            return f"{name} is not in the space"
        ran[key] = value
    found: dict[str, Scalar] = {}
    order = draw_order(space)
    for key in order:
        if exists(space[key], found):
            if key not in ran:
                return f"{key} is missing"
            if not space[key].can_be(ran[key]):
                return f"{key} outside the space"
            found[key] = as_drawn(space[key], ran[key])
    odd = next((key for key in order if key in ran and key not in found), None)
    return found if odd is None else f"{odd} does not exist at its point"


def _imported(trial: Any, *, spec: ProjectSpec, source: str) -> Any:
    """Return a trial as one of the new study, or why it is not imported."""
    section, objectives = spec.sweep, spec.objectives
    if trial.state.name != "COMPLETE":
        return {"FAIL": "failed", "PRUNED": "pruned"}.get(trial.state.name, "not finished")
    if repeat_of(trial) is not None:
        return "trained again with another seed"
    if not all(map(math.isfinite, trial.values)):
        return "its value is not finite"
    params = point_of(trial.params, section.space, names=section.import_study.params)
    if isinstance(params, str):
        return params
    limits = section.constraints.items()
    bounds = {f"{name} {side}" for name, limit in limits for side in ("min", "max") if getattr(limit, side) is not None}
    broken = {key: float(excess) for key, excess in trial.constraints.items() if key in bounds}
    if bounds - broken.keys():
        return "says nothing of sweep.constraints"
    values = tuple(map(float, trial.values))
    record = TrialRecord(
        number=trial.number,
        params=params,
        status="complete",
        value=values[0],
        epochs=int(trial.last_step or 0),
        duration_s=trial.duration.total_seconds() if trial.duration else 0.0,
        # The constrained ones too, as far as they follow from their bounds: a fork may have other bounds.
        metrics=metrics_of(broken, constraints=section.constraints)
        | {objective.metric: value for objective, value in zip(objectives, values, strict=True)},
        values=values if len(values) > 1 else (),
        feasible=all(excess <= 0 for excess in broken.values()),
        carried_from=source,
    )
    return as_carried(trial, record, broken=broken, space=section.space, curve=False)


def _check_directions(study: Any, *, spec: ProjectSpec) -> None:
    known = ["min" if direction.name == "MINIMIZE" else "max" for direction in study.directions]
    wanted = [objective.mode for objective in spec.objectives]
    if known != wanted:
        shown = ", ".join(f"{objective.metric} {objective.mode}" for objective in spec.objectives)
        raise UsageError(
            f"the study {study.study_name} of sweep.import_study optimizes {', '.join(known)}, and the sweep {shown}",
            hint="Values are taken over as they are: import a study with the same objectives in the same order.",
        )
