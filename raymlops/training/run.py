"""``train``: one configuration, one MLflow run, one record, however often it is restarted.

Owns the order: whatever can be rejected is rejected before the MLflow run is created or reopened, and before a worker
trains; however a run ends, its record says so.
"""

from __future__ import annotations

import json
import platform
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from raymlops.cluster.driver_node import resumable
from raymlops.data.prepare import FIT, SOURCES, prepare
from raymlops.errors import NonFiniteError, RefusedError, StorageError, TrackingError, describe
from raymlops.records import RunRecord, to_json
from raymlops.signals import remembered, stop_asked, undisturbed
from raymlops.state.database import state_url
from raymlops.state.lease import lease
from raymlops.storage import filesystem
from raymlops.tracking.client import tracker as tracker_of
from raymlops.training.checkpoints.latest import recall
from raymlops.training.checkpoints.retention import POINTER
from raymlops.training.data_checks.gate import REPORT, blaming_data, check_data
from raymlops.training.events import Event, words
from raymlops.training.inprocess import check_gpu
from raymlops.training.local_run import run_here
from raymlops.training.preflight import preflight
from raymlops.training.runs import resume as resuming
from raymlops.training.runs.lookup import AT_END, BEST, CHECKPOINTS, LOG, RUNS, look_up, mark_origin, resume_command
from raymlops.training.runs.mlflow_run import code_of, open_run
from raymlops.training.runs.writer import REASON, RunWriter
from raymlops.training.supervision.request import RunRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from raymlops.config.changes import Change
    from raymlops.config.schema import ProjectSpec
    from raymlops.data.prepare import Prepared
    from raymlops.project import Project
    from raymlops.tracking.client import Tracker
    from raymlops.training.data_checks.gate import DataReport
    from raymlops.training.loop.outcome import Outcome
    from raymlops.training.runs.lookup import Recorded
    from raymlops.training.supervision.processes import StartedAhead
    from raymlops.training.supervision.scaling_policy import Room


def train(
    project: Project,
    *,
    tags: Mapping[str, str] | None = None,
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
        DataRefusedError: ``data.checks`` refuse the data of a new run.
        UsageError: the configuration asks for a GPU in this process, which sees none.
        NonFiniteError: a loss or ``train.metric`` is NaN or infinite.
        TrainingError: it failed otherwise, more often than ``train.max_restarts`` allows.
        KeyboardInterrupt: the run was interrupted; it is marked KILLED and can be resumed.
    """
    started, spec, code = time.monotonic(), project.spec, code_of(project)
    with remembered() as check_signals, ExitStack() as held:

        def hold(run_id: str) -> None:
            held.enter_context(lease(state_url(spec), run_id, purpose="training it"))

        ahead = _started_ahead(project, room=room, held=held)
        runs_uri = _checked_folder(spec)
        tracker = tracker_of(spec)
        tracker.check()
        before, changes, state, sources = None, [], None, None
        if resume is not None:
            before = look_up(tracker, resume)
            changes = resuming.check_resumable(before, spec)
            files_uri = filesystem.join(runs_uri, before.run_id)
            resuming.check_files(before, there=bool(filesystem.listing(files_uri)), host=platform.node())
            hold(before.run_id)
            state = resuming.recorded_state(tracker, before, checkpoints_uri=filesystem.join(files_uri, CHECKPOINTS))
            sources = resuming.recorded_sources(tracker, before)
        prepared = prepare(
            project,
            state=state,
            sources=sources,
            versions=None if before is None else resuming.recorded_versions(before),
            refit=before is not None and resuming.code_differs(before, project),
        )
        prepared.verify()
        notices = spec.train.without_effect()
        with blaming_data(prepared, None if before else spec.data.checks):
            unused = preflight(
                project, prepared, code=code, warn=None if before is None else notices.append, notice=notices.append
            )
        checked = None if before else check_data(prepared, spec.data.checks, notice=notices.append)
        check_signals()

        if before is None:
            run_id, previous = open_run(tracker, project, prepared.data, code=code, tags=tags), None
            notices += prepared.data.notes
        else:
            run_id = before.run_id
            notices += resuming.fit_notices(prepared, known=state)
            notices += _check_and_record(tracker, before, changes, project=project, prepared=prepared)
            previous = tracker.reopen_run(run_id, without_tags=[REASON])
        files_uri = filesystem.join(runs_uri, run_id)
        writer = RunWriter(
            tracker, run_id, on_event=on_event, previous=previous, log_uri=filesystem.join(files_uri, LOG)
        )
        request = RunRequest(
            project,
            prepared,
            files_uri=files_uri,
            writer=writer,
            catch_up=writer.catch_up,
            unused_parameters=unused,
            room=room,
            started=None if ahead is None else ahead.take(),
        )
        command = resume_command("train", run_id, spec=spec)
        with _closing_on_error(request, writer, command=command):
            writer(words(f"run {run_id}"))
            if before is None:
                hold(run_id)
                mark_origin(files_uri, tracker)
                _log_data(tracker, run_id, prepared, checked=checked)
            if state is None:
                tracker.log_text(run_id, json.dumps(prepared.state), FIT)
            for text in notices:
                writer(words(text))
            check_signals()
            outcome, weights_uri = _run(request, command=command)
            record = RunRecord(
                run_id=run_id,
                project=spec.project.name,
                metrics=outcome.metrics,
                best_epoch=outcome.best_epoch,
                best_step=outcome.best_step,
                epochs=outcome.epochs,
                steps=outcome.steps,
                duration_s=time.monotonic() - started,
                weights_uri=weights_uri,
                config_sha=spec.sha(),
                data=prepared.data,
                tracking_uri=tracker.shown_uri,
                num_workers=outcome.workers,
            )
            _finish(tracker, writer, record, test=outcome.test, rows=prepared.splits["test"].rows)
    return record


def _log_data(tracker: Tracker, run_id: str, prepared: Prepared, *, checked: DataReport | None) -> None:
    """Log where the rows are found again, and what was checked of them."""
    tracker.log_text(run_id, json.dumps(prepared.sources()), SOURCES)
    if checked is not None:
        tracker.log_text(run_id, to_json(checked.to_dict()), REPORT)


def _started_ahead(project: Project, *, room: Room | None, held: ExitStack) -> StartedAhead | None:
    """Start the workers' processes beside the checks; where one fails, they end with it."""
    if room is None or not project.spec.train.workers[1]:
        return None
    from raymlops.training.supervision.processes import start_ahead

    with undisturbed():
        ahead = start_ahead(project.spec.train, room=room)
        return None if ahead is None else held.enter_context(ahead)


def _checked_folder(spec: ProjectSpec) -> str:
    """Return the folder of all runs, once it can be written and this process has the GPU that it needs."""
    if not spec.train.workers[1]:
        check_gpu(spec.train)
    runs_uri = filesystem.join(spec.storage.path, RUNS)
    filesystem.check_writable(runs_uri)
    return runs_uri


@contextmanager
def _closing_on_error(request: RunRequest, writer: RunWriter, *, command: str) -> Iterator[None]:
    """End the run with the error that the block raises, which gets the command that resumes it."""
    try:
        yield
    except RefusedError:
        raise  # another driver trains it now, and closes it
    except BaseException as error:
        writer.close_failed(error)
        if writer.display_error is not None and error is not writer.display_error:
            error.add_note(f"The display had failed before: {describe(writer.display_error)}")
        with suppress(StorageError):
            if set(filesystem.listing(request.checkpoints_uri)) - {POINTER}:
                diverged = isinstance(error, NonFiniteError)
                how, skip = (" without such batches", " train.on_non_finite=skip") if diverged else ("", "")
                error.add_note(f"To resume from its newest checkpoint{how}: {command}{skip}")
        raise


def _check_and_record(
    tracker: Tracker, before: Recorded, changes: Sequence[Change], *, project: Project, prepared: Prepared
) -> list[str]:
    """Check the data and the checkpoints of a run that resumes, and record what has changed; return notices."""
    data = resuming.data_of(before, prepared)
    resuming.check_data(before, data)
    if before.status == "FINISHED":
        section = project.spec.train
        uri = filesystem.join(project.spec.storage.path, RUNS, before.run_id, CHECKPOINTS)
        state = recall(uri, metric=section.metric, mode=section.mode, repair=False, digests=False).state
        evaluated = resuming.is_evaluated(tracker, before.run_id)
        finished = state is None or state.finished
        resuming.check_unfinished(before, project.spec, finished=finished, evaluated=evaluated)
    changed = resuming.write_changes(tracker, before, project=project, changes=changes)
    return [*(f"resumed with a change: {text}" for text in changed), *data.notes]


def _run(request: RunRequest, *, command: str) -> tuple[Outcome, str]:
    """Train on workers or in this process, until it ends or a signal stops it."""
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
            return run_here(request)
        except Exception as error:
            # An error of the recipe's code or torch after an interrupt is no failure; a failed last checkpoint is one.
            if asked() and not isinstance(error, StorageError | RefusedError):
                raise KeyboardInterrupt from error
            raise


def _record_test(
    tracker: Tracker, writer: RunWriter, record: RunRecord, *, test: Mapping[str, float], rows: int
) -> None:
    """Record the test metrics of the weights that are kept; without any, registration evaluates the split."""
    if not test:
        return
    fingerprint = record.data.fingerprint
    found = {"metrics": test, "rows": rows, "data_fingerprint": fingerprint, "weights_uri": record.weights_uri}
    try:
        tracker.log_text(record.run_id, json.dumps(found, indent=1, sort_keys=True), AT_END)
    except TrackingError as error:
        writer(words(f"{AT_END} was not written: {error.message}"))


def _finish(tracker: Tracker, writer: RunWriter, record: RunRecord, *, test: Mapping[str, float], rows: int) -> None:
    """Close the run, with the metrics of the weights that are kept; ``rows`` are those of the test split."""
    _record_test(tracker, writer, record, test=test, rows=rows)
    writer(
        Event(
            "end",
            epoch=record.epochs,
            epochs=record.epochs,
            step=record.steps,
            steps=record.steps,
            metrics=record.metrics,
            elapsed_s=record.duration_s,
            message=f"best: {record.best_at} of {record.epochs if record.best_step is None else record.steps}",
        )
    )
    if writer.display_error is not None:
        raise writer.display_error
    tags = {
        "raymlops.weights_uri": record.weights_uri,
        "raymlops.best_epoch": str(record.best_epoch),
        **({} if record.best_step is None else {"raymlops.best_step": str(record.best_step)}),
        "raymlops.epochs": str(record.epochs),
        "raymlops.steps": str(record.steps),
        "raymlops.duration_s": f"{record.duration_s:.1f}",
        "raymlops.workers": str(record.num_workers),
        **{f"{BEST}{name}": repr(value) for name, value in record.metrics.items()},
    }
    try:
        writer.close("FINISHED", tags=tags, kept={**record.metrics, **test})
    except TrackingError as error:
        raise TrackingError(
            f"the training is done, but its MLflow run {record.run_id} could not be closed: {error.message}",
            hint=f"The weights are in {record.weights_uri}. Once it answers: raymlops train --resume {record.run_id}",
        ) from error
