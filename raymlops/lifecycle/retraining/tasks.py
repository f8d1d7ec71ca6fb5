"""A task of a retraining, in a Ray job of its own: train, gate, replay or compare. Each may be repeated.

Owns what is there already: a run that was finished, or can be resumed, by its tag; a version by its run; a replay and a
comparison by what the retraining holds. What follows, the loop decides.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from raymlops.config.retrain import RetrainSection
from raymlops.config.stored import read_stored
from raymlops.errors import GateRefusedError, RefusedError
from raymlops.lifecycle.batch.replay_piece import TrainedUntil
from raymlops.lifecycle.live.lineup import champion_of
from raymlops.lifecycle.live.log_owner import log_of
from raymlops.lifecycle.loop.next_step import COMPARING, TRAINED_ON
from raymlops.lifecycle.loop.stage_jobs import newest_run
from raymlops.lifecycle.loop.training_data import check_recipe, tables_of, training_window
from raymlops.lifecycle.quality.facts import quality_facts
from raymlops.lifecycle.registration.gate import gate
from raymlops.lifecycle.registration.register import register
from raymlops.lifecycle.retraining.compare import compared
from raymlops.lifecycle.sources import Source, project_of, spec_of, state_of
from raymlops.lifecycle.sweeps.handle import attach
from raymlops.lifecycle.sweeps.run import run_sweep, sweep_request
from raymlops.lifecycle.train import train
from raymlops.records import Record
from raymlops.state.loop import advance, retraining_of
from raymlops.state.versions import recorded

if TYPE_CHECKING:
    from raymlops.config.schema import ProjectSpec
    from raymlops.lifecycle.loop.log_tables import LogTables
    from raymlops.lifecycle.loop.next_step import Task
    from raymlops.monitor.baked import Compared
    from raymlops.project import Project
    from raymlops.records import GateDecision, TrialRecord
    from raymlops.state.loop import Retraining, Stage
    from raymlops.state.store import State
    from raymlops.tracking.client import Tracker


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskRecord(Record):
    """What a task of a retraining came to."""

    retraining: str
    task: Task
    result: str
    """A run, or the verdict with its reason."""


def retraining_job(source: Source, retraining_id: str, task: Task) -> TaskRecord:
    """Run a task of a retraining.

    Raises:
        NotFoundError: there is no such retraining.
        RefusedError: it has ended, or is not where it has what the task needs.
        RaymlopsError: of the task; the same call goes on.
    """
    spec = spec_of(source)
    if task == "train":
        return TaskRecord(retraining_id, task, _train(spec, retraining_id))
    tasks = {"gate": _gate, "replay": _replay, "compare": _compare}
    with state_of(spec) as state:
        result = tasks[task](spec, state, retraining_id)
    return TaskRecord(retraining_id, task, result)


def _train(spec: ProjectSpec, retraining_id: str) -> str:
    """Train, or resume, and return the run."""
    from raymlops.tracking.client import tracker as tracker_of
    from raymlops.training.runs.lookup import look_up

    tracker = tracker_of(spec)
    tracker.check()
    run_id = newest_run(tracker, spec.experiment, retraining_id, finished=True)
    if run_id is not None:
        return run_id
    run_id = newest_run(tracker, spec.experiment, retraining_id, finished=False)
    if run_id is not None:  # with its own configuration, which may be the best one of a sweep
        return train(look_up(tracker, run_id).spec or spec, resume=run_id).run_id
    project = _on_its_rows(project_of(spec), retraining_id)
    if spec.retrain.sweep and spec.sweep.space:
        project = project.with_params(_best(project, retraining_id, tracker).settings)
    return train(project).run_id


def _best(project: Project, retraining_id: str, tracker: Tracker) -> TrialRecord:
    """Return the best trial of the retraining's sweep, which is begun or resumed unless it has ended."""
    experiment = project.spec.experiment
    ended = newest_run(tracker, experiment, retraining_id, finished=True, kind="sweep")
    if ended is not None:
        return attach(ended, project.spec).best
    begun = newest_run(tracker, experiment, retraining_id, finished=False, kind="sweep")
    return run_sweep(sweep_request(project, resume=begun)).best


def _on_its_rows(project: Project, retraining_id: str) -> Project:
    """Return a project that is trained on the window of a retraining, or on tables of the prediction log.

    What is to be known of these is kept with the retraining before anything is trained on them.

    Raises:
        DataRefusedError: the log does not have what is needed.
        RefusedError: the retraining has ended meanwhile.
        RecipeError: the recipe takes no window, or has no label.
    """
    if project.spec.train.window.start is not None:
        check_recipe(project.recipe_class, later_rows=project.spec.gate.later_rows)
        return project
    with state_of(project.spec) as state:
        one = retraining_of(state, retraining_id)
        champion = champion_of(state.deployments(one.name))
        if champion is None:
            raise RefusedError(f"{one.name} was taken down just now")
        tables = tables_of(state, one, champion, project.recipe_class)
        keep_data(state, retraining_id, tables)
    for note in tables.notes:
        _log.warning("%s", note)
    return project.with_train(project.spec.train.model_copy(update={"tables": tables.uri}))


def _gate(spec: ProjectSpec, state: State, retraining_id: str) -> str:
    """Register the run and ask the gate; what it refuses is no error of this task."""
    one = retraining_of(state, retraining_id)
    if one.run_id is None:
        raise RefusedError(f"retraining {one.id} of {one.name} has no run yet: it is {one.stage}")
    version = register(spec, one.run_id)
    try:
        return f"passed: {gate(spec, str(version.version))[1].reason}"
    except GateRefusedError as error:
        return f"refused: {error.message}"


def _replay(spec: ProjectSpec, state: State, retraining_id: str) -> str:
    from raymlops.cluster.connect import connect
    from raymlops.lifecycle.batch.replay import on_workers, replay
    from raymlops.monitor.replayed import Bounds

    one = retraining_of(state, retraining_id)
    champion = champion_of(state.deployments(one.name))
    record = None if one.version is None else recorded(state, one.name, one.version)
    if champion is None or record is None:
        raise RefusedError(f"retraining {one.id} of {one.name} has nothing to replay: it is {one.stage}")
    until = state.now()
    policy = read_stored(RetrainSection, one.settings)
    since, bounds = until - timedelta(hours=policy.replay_h), Bounds(max_caller_share=policy.max_caller_share)
    with connect(spec):
        decision = replay(
            champion,
            record.bundle,
            log=log_of(champion, state.owner().id),
            since=since,
            until=until,
            answer=on_workers(spec),
            trained_until=trained_until(one),
            bounds=bounds,
        )
    keep(state, retraining_id, decision)
    return f"{'passed' if decision.passed else 'refused'}: {decision.reason}"


def trained_until(one: Retraining) -> TrainedUntil:
    """Return up to when a retraining knew rows and labels: as its gate found, or else to the end of its window."""
    gate, stop = one.found.get("gating", {}), training_window(one).stop
    found = (gate.get(key) for key in ("rows_until", "labels_until"))
    rows, labels = (stop if text is None else datetime.fromisoformat(text) for text in found)
    return TrainedUntil(rows.timestamp(), labels.timestamp())


def _compare(spec: ProjectSpec, state: State, retraining_id: str) -> str:
    from raymlops.cluster.connect import connect
    from raymlops.lifecycle.batch.replay import on_workers

    one = retraining_of(state, retraining_id)
    champion, known = champion_of(state.deployments(one.name)), quality_facts(state, one.name, now=state.now())
    if champion is None or champion.version != one.version or known.since is None or known.until is None:
        raise RefusedError(f"retraining {one.id} of {one.name} has nothing to compare: it is {one.stage}")
    with connect(spec):
        times = {"since": known.since, "until": known.until}
        found = compared(state, champion, one.champion, **times, answer=on_workers(spec))
    keep_compared(state, retraining_id, found)
    return f"{found.outcome}: {found.reason}"


def keep(state: State, retraining_id: str, decision: GateDecision) -> None:
    """Write the decision of a replay with its retraining, whatever else is written of that meanwhile.

    Raises:
        RefusedError: it has ended.
    """
    _keep(state, retraining_id, ("replaying",), {"replaying": decision.to_dict()}, why=f"replayed: {decision.reason}")


def keep_data(state: State, retraining_id: str, tables: LogTables) -> None:
    """Write what a retraining is trained on with it, once.

    Raises:
        RefusedError: it has ended.
    """
    data = {**tables.to_dict(), "notes": list(tables.notes)}
    if retraining_of(state, retraining_id).found.get(TRAINED_ON) != data:
        why = f"trained on {tables.sentence()}"
        _keep(state, retraining_id, ("checking", "training"), {TRAINED_ON: data}, why=why)


def keep_compared(state: State, retraining_id: str, found: Compared) -> None:
    """Write a comparison with its retraining, as ``keep`` does; the next one may fail as often again.

    Raises:
        RefusedError: it has ended.
    """
    adds = {COMPARING: found.to_dict()}
    _keep(state, retraining_id, ("baking",), adds, why=f"compared: {found.reason}", failures=0)


def _keep(
    state: State, retraining_id: str, stages: tuple[Stage, ...], adds: dict[str, Any], *, why: str, **changes: Any
) -> None:
    while True:
        one = retraining_of(state, retraining_id)
        if one.stage not in stages:
            raise RefusedError(f"retraining {one.id} of {one.name} is {one.stage}: what was found counts no more")
        after = one.at(one.stage, now=state.now(), note=one.note, found={**one.found, **adds}, **changes)
        if advance(state, one, after, why=why) is not None:
            return
