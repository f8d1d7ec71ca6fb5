"""The trials of a sweep, run to their end on Ray Tune, whatever ends it.

Owns what is set up around them and what is closed after them. Knows nothing of winners.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from raymlops.cluster import holders
from raymlops.cluster.driver_node import resumable
from raymlops.errors import NotFoundError, RaymlopsError, StorageError, SweepError, TrackingError, describe
from raymlops.signals import undisturbed
from raymlops.storage import filesystem
from raymlops.training.runs.garbage_of_sweeps import TRIALS
from raymlops.training.runs.lookup import go_on
from raymlops.tuning.execution.controller import Conductor
from raymlops.tuning.execution.schedulers import judge, reports
from raymlops.tuning.execution.tune_settings import quiet_tune, stop_on_signal
from raymlops.tuning.execution.tuner import fit
from raymlops.tuning.mlflow.trial_runs import INTERRUPTED_WAIT_S
from raymlops.tuning.objectives import concurrency, objectives_of
from raymlops.tuning.reporting.results import folder_of, write_trials
from raymlops.tuning.stalls import told
from raymlops.tuning.study.trials import history_of
from raymlops.tuning.trial.actor import release, trainable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.data.cache import DataCache
    from raymlops.project import Project
    from raymlops.records import SpentRecord
    from raymlops.tracking.client import Tracker
    from raymlops.tuning.reporting.progress import SweepEvent
    from raymlops.tuning.stalls import Waiter
    from raymlops.tuning.stores import Books


def search(
    project: Project,
    books: Books,
    *,
    store: Tracker,
    data: DataCache,
    before: SpentRecord,
    on_event: Callable[[SweepEvent], None] | None,
) -> Conductor:
    """Run the trials that are left; whatever happens, none of them runs when this returns or raises.

    Raises:
        SweepError: something failed that is no trial's fault; trials that ran are put back.
        TrackingError: the trials are done, but MLflow did not take it.
        KeyboardInterrupt: it was interrupted; trials that ran are put back.
    """
    spec, sweep_id = project.spec, books.parent.sweep_id
    sweep_uri = folder_of(spec, sweep_id)
    with ThreadPoolExecutor(1, thread_name_prefix="raymlops-discard") as discarding:

        def discard(number: int) -> None:
            discarding.submit(_delete, filesystem.join(sweep_uri, TRIALS, str(number)))

        conductor = Conductor(
            project,
            trials=books.trials,
            children=books.children,
            sweep_uri=sweep_uri,
            slots=lambda: concurrency(spec, holders.usable()[0]),
            explain=_explained,
            before=before,
            shared=data.share(),
            on_event=on_event,
            note=books.children.set_parent,
            discard=discard,
        )
        try:
            conductor.tell(f"sweep {sweep_id}")
            _run(project, books, conductor=conductor, data=data)
        except Exception as error:
            conductor.failed(error)
        finally:
            lost = _close(project, books, conductor=conductor, store=store)
        if conductor.halt not in {"interrupted", "broken"} and not _unfinished(books):
            discarding.submit(_delete, filesystem.join(sweep_uri, TRIALS))
    _raise_what_ended_it(conductor, books, lost=lost, spec=spec)
    return conductor


def _explained(waiters: Sequence[Waiter], *, still_s: float, running: int) -> str:
    """Ask the cluster who holds what the trials wait for."""
    import ray

    total, free = holders.nodes()
    others = holders.holders(without_job=ray.get_runtime_context().get_job_id())
    return told(
        waiters, still_s=still_s, running=running, total=total, free=free, own=holders.usable()[1], holders=others
    )


def _run(project: Project, books: Books, *, conductor: Conductor, data: DataCache) -> None:
    """Tell scheduler and conductor what came before, and let Tune run what is left."""
    spec = project.spec
    scheduler = judge(spec)
    stopped = set()
    for frozen in books.study.get_trials(deepcopy=False):
        told = reports(spec, frozen.intermediate_values, history_of(frozen))
        if scheduler.replay(frozen.number, told, complete=frozen.state.name == "COMPLETE"):
            stopped.add(frozen.number)
    for opened in books.trials.reopen():
        if opened.number in stopped:
            conductor.stopped_before(opened)
        else:
            conductor.goes_on(opened)
    if conductor.done:
        return
    command = go_on("sweep", books.parent.sweep_id, spec=spec)
    with stop_on_signal(conductor), quiet_tune(), resumable(command):
        given = trainable(data.shared_data() if spec.sweep.workers_per_trial == 1 else None)
        try:
            fit(conductor, trainable=given, judge=scheduler, name=books.parent.sweep_id)
        finally:
            release(given)


def _close(project: Project, books: Books, *, conductor: Conductor, store: Tracker) -> TrackingError | None:
    """Close the books, the study first: it does not depend on MLflow. Return what MLflow refused."""
    with undisturbed():
        try:
            conductor.close()
        except Exception as error:
            conductor.failed(error)
            try:
                conductor.close()  # what failed may have been the display, which is asked no more
            except Exception as again:
                error.add_note(f"Trials are left open: {describe(again)}")
        try:
            if conductor.halt == "interrupted":
                books.children.close(wait_s=INTERRUPTED_WAIT_S, patient=False)
            else:
                books.children.close()
            write_trials(
                store, books.records(), sweep_id=books.parent.sweep_id, objective=objectives_of(project.spec)[0]
            )
        except TrackingError as error:
            return error
    return None


def _raise_what_ended_it(conductor: Conductor, books: Books, *, lost: TrackingError | None, spec: ProjectSpec) -> None:
    sweep_id = books.parent.sweep_id
    command = go_on("sweep", sweep_id, spec=spec)
    how = f"It goes on with: {command}"
    if isinstance(conductor.error, RaymlopsError):
        conductor.error.add_note(how)
        raise conductor.error
    if conductor.error is not None:
        raise SweepError(f"the sweep broke off: {describe(conductor.error)}", hint=how) from conductor.error
    if conductor.halt == "interrupted":
        stopped = KeyboardInterrupt()
        stopped.add_note(how)
        raise stopped
    if lost is not None:
        raise TrackingError(
            f"the trials are done, but MLflow did not take all they gave: {lost.message}",
            hint=f"The Optuna study {books.trials.study_name} holds every trial. Once MLflow answers, "
            f"{command} writes what it lacks.",
        ) from lost


def _unfinished(books: Books) -> bool:
    """Return whether a trial is to go on some day, from its checkpoint."""
    from optuna.trial import TrialState

    return bool(books.study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)))


def _delete(uri: str) -> None:
    with suppress(StorageError, NotFoundError):
        filesystem.delete(uri)
