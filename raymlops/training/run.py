"""``train``: one configuration, one MLflow run, one record, however often it is restarted.

Owns the order: whatever can be rejected is rejected before the MLflow run is created or reopened, and before a worker
starts; however a run ends, its record says so.
"""

from __future__ import annotations

import json
import platform
import secrets
import time
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from raymlops.cluster.driver_node import resumable
from raymlops.config.changes import identity
from raymlops.data.prepare import FIT, SOURCES, prepare
from raymlops.errors import NonFiniteError, RefusedError, StorageError, TrackingError
from raymlops.records import RunRecord
from raymlops.signals import remembered, stop_asked
from raymlops.state.database import state_url
from raymlops.state.lease import lease
from raymlops.storage import filesystem
from raymlops.tracking.client import tracker as tracker_of
from raymlops.training.checkpoints.latest import recall
from raymlops.training.checkpoints.retention import POINTER
from raymlops.training.checkpoints.saver import FolderSaver, load_weights
from raymlops.training.events import Event, words
from raymlops.training.inprocess import LocalResult, run_in_process, run_local
from raymlops.training.loop.context import Hooks
from raymlops.training.preflight import preflight
from raymlops.training.runs import resume as resuming
from raymlops.training.runs.lookup import (
    CHECKPOINTS,
    RUNS,
    STORAGE_PATH,
    Place,
    absolute,
    look_up,
    mark_origin,
    resume_command,
)
from raymlops.training.runs.mlflow_run import open_run
from raymlops.training.runs.writer import CHECKPOINT_FAILURES, REASON, RunWriter
from raymlops.training.supervision.request import RunRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from raymlops.config.changes import Change
    from raymlops.config.schema import ProjectSpec
    from raymlops.data.prepare import Prepared
    from raymlops.project import Project
    from raymlops.tracking.client import Tracker
    from raymlops.training.loop.context import Outcome
    from raymlops.training.runs.lookup import Recorded
    from raymlops.training.supervision.scaling_policy import Room

__all__ = ["LocalResult", "load_weights", "preflight", "run_local", "train"]


def train(
    project: Project,
    *,
    tags: Mapping[str, str] | None = None,
    parent_run_id: str | None = None,
    on_event: Callable[[Event], None] | None = None,
    resume: str | None = None,
    room: Room | None = None,
) -> RunRecord:
    """Train a project and return its record.

    With ``num_workers`` above 0, Ray must be initialised, and ``room`` counts the workers that fit. ``resume`` is the
    id of a run to resume from its newest checkpoint. The first SIGINT or SIGTERM stops the training after the current
    step and a last checkpoint; the second stops it at once.

    Raises:
        StorageError, TrackingError, RecipeError: before the run is created, or, from the recipe's code, during it.
        NotFoundError, UsageError, RefusedError: the run cannot be resumed: it does not exist, its configuration or data
            have changed, or another driver trains it.
        NonFiniteError: a loss or ``train.metric`` is NaN or infinite.
        TrainingError: it failed otherwise, more often than ``train.max_restarts`` allows.
        KeyboardInterrupt: the run was interrupted; it is marked KILLED and can be resumed.
    """
    started = time.monotonic()
    spec = project.spec
    with remembered() as check_signals, ExitStack() as held:
        runs_uri = filesystem.join(spec.storage.path, RUNS)
        origin = {STORAGE_PATH: absolute(spec.storage.path)}
        filesystem.check_writable(runs_uri)
        tracker = tracker_of(spec)
        tracker.check()
        before, changes = None, []
        if resume is not None:
            before = look_up(tracker, resume)
            changes = resuming.check_resumable(before, spec)
            there = bool(filesystem.listing(filesystem.join(runs_uri, before.run_id)))
            resuming.check_files(before, there=there, host=platform.node())
            held.enter_context(_lease(project, before.run_id))
        state = None if before is None else _recorded_state(tracker, before, runs_uri=runs_uri)
        prepared = prepare(
            project,
            state=state,
            sources=None if before is None else resuming.recorded_sources(tracker, before),
            refit=before is not None and resuming.code_differs(before, project),
        )
        prepared.verify()
        unservable: list[str] = []
        unused = preflight(project, prepared, warn=None if before is None else unservable.append)
        check_signals()

        if before is not None:
            place = Place(runs_uri, before.run_id)
            writer = _reopened(tracker, before, changes, project=project, prepared=prepared, place=place, show=on_event)
        else:
            run_id = open_run(
                tracker, project, prepared.data, tags=origin | dict(tags or {}), parent_run_id=parent_run_id
            )
            place = Place(runs_uri, run_id)
            writer = RunWriter(tracker, run_id, on_event=on_event, log_uri=place.log_uri)
        try:
            writer(words(f"run {place.run_id}"))
            if before is None:
                held.enter_context(_lease(project, place.run_id))
                mark_origin(filesystem.join(runs_uri, place.run_id), tracker)
                tracker.log_text(place.run_id, json.dumps(prepared.sources()), SOURCES)
            for text in unservable:
                writer(words(text))
            _record_data(tracker, writer, prepared, before=before, state=state)
            check_signals()
            outcome, weights_uri = _run(RunRequest(project, prepared, place, writer, unused, room))
            record = RunRecord(
                run_id=place.run_id,
                project=spec.project.name,
                metrics=outcome.metrics,
                best_epoch=outcome.best_epoch,
                epochs=outcome.epochs,
                steps=outcome.steps,
                duration_s=time.monotonic() - started,
                weights_uri=weights_uri,
                config_sha=spec.sha(),
                data=prepared.data,
                tracking_uri=tracker.shown_uri,
                num_workers=outcome.workers,
            )
            _close_finished(writer, record)
        except RefusedError:
            raise  # another driver trains it now, and closes it
        except BaseException as error:
            writer.close_failed(error)
            with suppress(StorageError):
                if set(filesystem.listing(place.checkpoints_uri)) - {POINTER}:
                    error.add_note(_how_to_resume(error, place.run_id, spec=spec))
            raise
    return record


def _how_to_resume(error: BaseException, run_id: str, *, spec: ProjectSpec) -> str:
    command = resume_command("train", run_id, spec=spec)
    if isinstance(error, NonFiniteError):
        return f"To resume from its newest checkpoint without such batches: {command} train.on_non_finite=skip"
    return f"To resume from its newest checkpoint: {command}"


def _recorded_state(tracker: Tracker, before: Recorded, *, runs_uri: str) -> dict[str, Any] | None:
    checkpoints_uri = filesystem.join(runs_uri, before.run_id, CHECKPOINTS)
    return resuming.recorded_state(tracker, before, checkpoints_uri=checkpoints_uri)


def _lease(project: Project, run_id: str) -> AbstractContextManager[None]:
    return lease(state_url(project.spec), run_id, purpose="training it")


def _reopened(
    tracker: Tracker,
    before: Recorded,
    changes: list[Change],
    *,
    project: Project,
    prepared: Prepared,
    place: Place,
    show: Callable[[Event], None] | None,
) -> RunWriter:
    """Check the data and the checkpoints, record what has changed, and mark the run as running again."""
    resuming.check_data(before, resuming.data_of(before, prepared))
    if before.status == "FINISHED":
        section = project.spec.train
        state = recall(place.checkpoints_uri, metric=section.metric, mode=section.mode, repair=False).state
        evaluated = resuming.is_evaluated(tracker, before.run_id)
        finished = state is None or state.finished
        resuming.check_unfinished(before, project.spec, finished=finished, evaluated=evaluated)
    said = resuming.write_changes(tracker, before, project=project, changes=changes)
    previous = tracker.reopen_run(before.run_id, without_tags=[REASON])
    writer = RunWriter(tracker, before.run_id, on_event=show, previous=previous, log_uri=place.log_uri)
    for text in said:
        writer(words(f"resumed with a change: {text}"))
    return writer


def _record_data(
    tracker: Tracker,
    writer: RunWriter,
    prepared: Prepared,
    *,
    before: Recorded | None,
    state: Mapping[str, Any] | None,
) -> None:
    """Record what ``fit`` learnt, if it is new, and emit notices about rows and state."""
    if state is None:
        tracker.log_text(writer.run_id, json.dumps(prepared.state), FIT)
    data = prepared.data if before is None else resuming.data_of(before, prepared)
    for text in (*data.notes, "" if before is None else resuming.fit_in_words(prepared, known=state)):
        if text:
            writer(words(text))


def _run(request: RunRequest) -> tuple[Outcome, str]:
    """Train on workers or in this process, until it ends or a signal stops it."""
    command = resume_command("train", request.place.run_id, spec=request.project.spec)
    with stop_asked() as asked, resumable(command):
        announced: list[bool] = []

        def stop() -> str:
            if not asked():
                return ""
            if not announced:
                announced.append(True)
                request.writer(words("stopping after a last checkpoint; signal again to stop at once"))
            return "interrupted"

        request = replace(request, stop=stop)
        try:
            if request.section.workers[1]:
                from raymlops.training.supervision.supervisor import fit

                return fit(request)
            return _run_here(request)
        except Exception as error:
            # An error of the recipe's code or torch after an interrupt is no failure; a failed last checkpoint is one.
            if asked() and not isinstance(error, StorageError | RefusedError):
                raise KeyboardInterrupt from error
            raise


def _run_here(request: RunRequest) -> tuple[Outcome, str]:
    section, writer, own = request.section, request.writer, identity(request.project.spec)
    found = recall(request.place.checkpoints_uri, metric=section.metric, mode=section.mode)
    for text in found.warnings():
        writer(words(text))
    if found.state is not None:
        writer.catch_up(found.state.points)
        writer.note_restart(f"resumed after step {found.state.step}", step=found.state.step, workers=0)
    saver = FolderSaver(
        section,
        request.place.checkpoints_uri,
        token=secrets.token_hex(3),
        identity=own,
        kept=found.kept,
        on_event=lambda text: writer(words(text, tags={CHECKPOINT_FAILURES: str(saver.failures)})),
    )
    hooks = Hooks(emit=writer, orders=request.stop)
    outcome = run_in_process(
        request.project, request.prepared, saver=saver, hooks=hooks, resume=found.uri, identity=own
    )
    if outcome.stopped:
        raise KeyboardInterrupt
    return outcome, saver.best_uri


def _close_finished(writer: RunWriter, record: RunRecord) -> None:
    writer(
        Event(
            "end",
            epoch=record.epochs,
            epochs=record.epochs,
            step=record.steps,
            steps=record.steps,
            metrics=record.metrics,
            elapsed_s=record.duration_s,
            message=f"best epoch: {record.best_epoch} of {record.epochs}",
        )
    )
    tags = {
        "raymlops.weights_uri": record.weights_uri,
        "raymlops.best_epoch": str(record.best_epoch),
        "raymlops.epochs": str(record.epochs),
        "raymlops.steps": str(record.steps),
        "raymlops.duration_s": f"{record.duration_s:.1f}",
        "raymlops.workers": str(record.num_workers),
        **{f"raymlops.best.{name}": repr(value) for name, value in record.metrics.items()},
    }
    try:
        writer.close("FINISHED", tags=tags)
    except TrackingError as error:
        raise TrackingError(
            f"the training is done, but its MLflow run {record.run_id} could not be closed: {error.message}",
            hint=f"The weights are in {record.weights_uri}. Once it answers: raymlops train --resume {record.run_id}",
        ) from error
