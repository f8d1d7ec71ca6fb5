"""``compare``: read runs, trials and versions by what a user calls them, and return what differs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from raymlops.errors import NotFoundError, UsageError
from raymlops.lifecycle.comparison.record import ComparedRun, Comparison
from raymlops.lifecycle.named_model import split_version
from raymlops.lifecycle.sources import Source, known_tracker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.records import ModelVersionRef, RunRecord, TrialRecord
    from raymlops.tracking.client import Tracker
    from raymlops.training.runs.lookup import Recorded

_EPOCH, _RATE = "epoch", "train/lr"


def compare(
    runs: Sequence[str | RunRecord | TrialRecord | ModelVersionRef],
    source: Source | None = None,
    *,
    curves: bool = True,
    overrides: Sequence[str] = (),
    env: str | None = None,
) -> Comparison:
    """Return the settings and metrics that differ between runs; ``plot()`` of it draws their curves.

    A run is named by its id, a trial by its run's or as ``SWEEP_ID/NUMBER``, a model version as ``NAME@NUMBER`` or
    ``NAME@ALIAS``; records of them do as well. Settings are those that shape a result: recipe, training, data and code.
    Metrics are those of the model that is kept. ``source`` says where MLflow is; without one it is where
    ``MLFLOW_TRACKING_URI`` or ``RAYMLOPS_HOME`` say. Without ``curves`` none are read, which is faster.

    Raises:
        UsageError: fewer than two runs, or one that is a sweep.
        NotFoundError: one does not exist; the message names similar ones.
        TrackingError: MLflow does not answer.
    """
    if isinstance(runs, str) or len(runs) < 2:
        raise UsageError("a comparison takes two runs at least", hint="raymlops compare RUN_ID RUN_ID")
    tracker = known_tracker(source, overrides=overrides, env=env)
    found = [_found(tracker, run if isinstance(run, str) else _name_of(run)) for run in runs]
    compared = [_compared(tracker, recorded, label=label) for recorded, label in found]
    if not curves:
        return Comparison.of(compared)
    by_report = any(recorded.kind == "trial" for recorded, _ in found)
    drawn = [
        replace(run, curves=_curves(tracker, recorded, by_report=by_report))
        for run, (recorded, _) in zip(compared, found, strict=True)
    ]
    by_steps = any(run.settings.get("train.eval_every_steps", "null") != "null" for run in compared)
    return Comparison.of(drawn, axis="step" if not by_report else "report" if by_steps else _EPOCH)


def _name_of(run: RunRecord | TrialRecord | ModelVersionRef) -> str:
    from raymlops.records import ModelVersionRef

    if isinstance(run, ModelVersionRef):
        return f"{run.name}@{run.version}"
    if not run.run_id:
        raise UsageError("a trial that a fork took over has no run here", hint="Compare it in its own sweep.")
    return run.run_id


def _found(tracker: Tracker, name: str) -> tuple[Recorded, str]:
    """Return a run by what a user calls it, and its label."""
    from raymlops.registry.versions import Registry
    from raymlops.training.runs.lookup import look_up
    from raymlops.tuning.mlflow.sweep_run import sweep_of
    from raymlops.tuning.mlflow.trial_runs import TRIAL

    sweep_id, _, number = name.rpartition("/")
    model, version = split_version(name)
    if version is not None:
        ref = Registry(tracker).get(model, version)
        return look_up(tracker, ref.run_id), f"{ref.name}@{ref.version}"
    if sweep_id and number.isdecimal():
        trials = tracker.children_of(sweep_of(tracker, sweep_id).run_id, tags={TRIAL: str(int(number))})
        if not trials:
            raise NotFoundError(
                f"sweep {sweep_id} has no trial {number} in MLflow", hint=f"Its trials: raymlops status {sweep_id}"
            )
        return look_up(tracker, trials[0].info.run_id), name
    recorded = look_up(tracker, name)
    if recorded.kind == "sweep":
        raise UsageError(f"{name} is a sweep, not a run", hint=f"Name trials of it: {name}/0.")
    return recorded, name


def _compared(tracker: Tracker, recorded: Recorded, *, label: str) -> ComparedRun:
    from raymlops.training.events import COSTS
    from raymlops.tuning.mlflow.trial_runs import TRIAL_STATUS

    metrics = {**recorded.metrics, **recorded.best_metrics}
    return ComparedRun(
        label=label,
        run_id=recorded.run_id,
        state=recorded.tags.get(TRIAL_STATUS, recorded.status.lower()),
        settings=_settings(tracker, recorded),
        metrics={name: value for name, value in metrics.items() if not name.startswith((*COSTS, _RATE))},
    )


def _settings(tracker: Tracker, recorded: Recorded) -> dict[str, str]:
    """Return what shapes a run; of one that raymlops did not create, its parameters."""
    from raymlops.training.runs.lookup import look_up
    from raymlops.training.runs.mlflow_run import CODE_SHA, FINGERPRINT, ROWS, parameters

    params: dict[str, str] = {}
    if recorded.kind == "trial" or recorded.spec is None:
        params = dict(tracker.run(recorded.run_id).data.params)
    whole = recorded
    if recorded.kind == "trial" and (sweep_id := recorded.tags.get("mlflow.parentRunId")):
        whole = look_up(tracker, sweep_id)
    if whole.spec is None:
        return params
    rows: dict[str, Any] = json.loads(whole.tags.get(ROWS, "{}"))
    settings = parameters(whole.spec, fingerprint=whole.tags.get(FINGERPRINT, ""), rows=rows)
    return {**settings, "code.sha": whole.tags.get(CODE_SHA, ""), **params}


def _curves(tracker: Tracker, recorded: Recorded, *, by_report: bool) -> dict[str, list[tuple[int, float]]]:
    """Return the history of each metric, without costs and the learning rate; by report, over their number.

    That is what trials have: where there is no ``train.eval_every_steps``, a report an epoch.
    """
    from raymlops.training.events import COSTS

    names = sorted(name for name in recorded.metrics if not name.startswith((*COSTS, _RATE, "test/")))
    curves = {name: tracker.history(recorded.run_id, name) for name in names if name != _EPOCH}
    if by_report and recorded.kind != "trial":
        steps = [step for step, _ in tracker.history(recorded.run_id, _EPOCH)]
        numbers = {step: number for number, step in enumerate(steps, start=1)}
        curves = {
            name: [(numbers[step], value) for step, value in points if step in numbers]
            for name, points in curves.items()
        }
    return {name: points for name, points in curves.items() if points}
