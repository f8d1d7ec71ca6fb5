"""``train``: one configuration, one MLflow run, one record.

Owns the order: everything that can be refused is refused before the MLflow run exists and before a worker
starts, and however it ends, the run says so.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from raymlops.errors import TrackingError
from raymlops.records import RunRecord
from raymlops.signals import remembered
from raymlops.tracking.client import tracker as tracker_of
from raymlops.training import storage
from raymlops.training.checkpoint import FolderSaver, load_weights
from raymlops.training.data import prepare
from raymlops.training.local import LocalResult, run_in_process, run_local
from raymlops.training.preflight import has_unused_parameters, preflight
from raymlops.training.progress import Event
from raymlops.training.record import RunWriter, open_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from raymlops.project import Project
    from raymlops.training.context import Outcome
    from raymlops.training.data import Prepared

__all__ = ["LocalResult", "load_weights", "preflight", "run_local", "train"]


def train(
    project: Project,
    *,
    tags: Mapping[str, str] | None = None,
    parent_run_id: str | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> RunRecord:
    """Train a project and return its record. With ``num_workers`` above 0, Ray must be initialised.

    Raises:
        StorageError, TrackingError, RecipeError: before the run is created, or, from the recipe's code, during it.
        NonFiniteError: a loss or the deciding metric is NaN or infinite.
        TrainingError: a worker failed otherwise.
        KeyboardInterrupt: the run was interrupted; it is marked KILLED.
    """
    with remembered() as check_signals:
        return _train(project, tags=tags, parent_run_id=parent_run_id, on_event=on_event, check_signals=check_signals)


def _train(
    project: Project,
    *,
    tags: Mapping[str, str] | None,
    parent_run_id: str | None,
    on_event: Callable[[Event], None] | None,
    check_signals: Callable[[], None],
) -> RunRecord:
    started = time.monotonic()
    spec = project.spec
    runs_uri = storage.join(spec.storage.path, "runs")
    storage.check_writable(runs_uri)
    tracker = tracker_of(spec)
    tracker.check()
    prepared = prepare(project)
    preflight(project, prepared)
    check_signals()

    run_id = open_run(tracker, project, prepared.data, tags=tags, parent_run_id=parent_run_id)
    writer = RunWriter(tracker, run_id, on_event=on_event)
    try:
        check_signals()
        outcome, weights_uri = _run(
            project, prepared, runs_uri=runs_uri, run_id=run_id, writer=writer, check_signals=check_signals
        )
        record = RunRecord(
            run_id=run_id,
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
            num_workers=spec.train.num_workers,
        )
        _close_finished(writer, record)
    except BaseException as error:
        writer.close_failed(error)
        raise
    return record


def _run(
    project: Project,
    prepared: Prepared,
    *,
    runs_uri: str,
    run_id: str,
    writer: RunWriter,
    check_signals: Callable[[], None],
) -> tuple[Outcome, str]:
    section = project.spec.train
    if section.num_workers:
        from raymlops.training.distributed import Place, fit

        message = f"starting {section.num_workers} worker{'s' if section.num_workers > 1 else ''}"
        writer(Event("message", message=message, timestamp_ms=int(time.time() * 1000)))
        return fit(
            project,
            prepared,
            place=Place(runs_uri, run_id),
            unused_parameters=has_unused_parameters(project, prepared),
            emit=writer,
        )
    saver = FolderSaver(
        storage.join(runs_uri, run_id, "checkpoints"),
        every_epochs=section.checkpoint_every_epochs,
        keep=section.keep_checkpoints,
    )
    try:
        outcome = run_in_process(project, prepared, saver=saver, emit=writer, check_signals=check_signals)
    except Exception:
        check_signals()  # what the recipe's code or torch made of an interrupt is no failure
        raise
    return outcome, saver.best_uri


def _close_finished(writer: RunWriter, record: RunRecord) -> None:
    writer(
        Event(
            "end",
            epoch=record.best_epoch,
            epochs=record.epochs,
            step=record.steps,
            steps=record.steps,
            metrics=record.metrics,
            elapsed_s=record.duration_s,
            message=f"the best of {record.epochs} epochs is {record.best_epoch}",
        )
    )
    tags = {
        "raymlops.weights_uri": record.weights_uri,
        "raymlops.best_epoch": str(record.best_epoch),
        "raymlops.epochs": str(record.epochs),
        "raymlops.steps": str(record.steps),
        "raymlops.duration_s": f"{record.duration_s:.1f}",
        **{f"raymlops.best.{name}": repr(value) for name, value in record.metrics.items()},
    }
    try:
        writer.close("FINISHED", tags=tags)
    except TrackingError as error:
        raise TrackingError(
            f"the training is done, but its MLflow run {record.run_id} could not be finished: {error.message}",
            hint=f"The weights are in {record.weights_uri}.",
        ) from error
