"""Run the trials of a sweep on Ray Tune, however it ends.

Owns what is set up for the trials and closed after them. Does not choose a winner.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from raymlops.cluster import resource_usage
from raymlops.cluster.autoscaler import autoscaler_config, growth_by
from raymlops.cluster.driver_node import resumable
from raymlops.errors import (
    LeaseLostError,
    NotFoundError,
    RaymlopsError,
    StorageError,
    SweepError,
    TrackingError,
    describe,
)
from raymlops.signals import interrupting, undisturbed
from raymlops.storage import filesystem
from raymlops.training.runs.lookup import TRIALS
from raymlops.tuning.execution.controller import SweepController
from raymlops.tuning.execution.schedulers import judged, scheduler_of, unscheduled
from raymlops.tuning.execution.slots import concurrency, trial_request
from raymlops.tuning.execution.tuner import run_tune, stop_on_signal
from raymlops.tuning.mlflow.trial_runs import INTERRUPTED_WAIT_S
from raymlops.tuning.stalls import stall_report
from raymlops.tuning.study.records import repeat_of
from raymlops.tuning.study.reruns import add_repeats
from raymlops.tuning.study.storage import quiet_optuna
from raymlops.tuning.trial.actor import trainable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from raymlops.config.schema import ProjectSpec
    from raymlops.data.cache import DataCache
    from raymlops.data.shared import SharedData
    from raymlops.records import SpentRecord
    from raymlops.tuning.execution.schedulers import NumberedScheduler
    from raymlops.tuning.reporting.progress import SweepEvent
    from raymlops.tuning.stalls import StallReport, Waiter
    from raymlops.tuning.sweep_stores import SweepStores


def search(
    stores: SweepStores,
    *,
    data: DataCache,
    before: SpentRecord,
    renew: Callable[[], None],
    on_event: Callable[[SweepEvent], None] | None,
) -> SweepController:
    """Run the trials that are left; no trial runs once this returns or raises. ``renew`` renews the lease.

    Raises:
        LeaseLostError: another driver has taken over; nothing more was written.
        SweepError: something failed that is no trial's fault; running trials were suspended.
        TrackingError: the trials are done, but MLflow did not accept their results.
        KeyboardInterrupt: the sweep was interrupted; running trials were suspended.
    """
    spec, sweep_id = stores.project.spec, stores.parent.sweep_id
    trials_uri = filesystem.join(stores.uri, TRIALS)
    with ThreadPoolExecutor(1, thread_name_prefix="raymlops-sweep") as background, quiet_optuna():

        def discard(number: int) -> None:
            background.submit(_delete, filesystem.join(trials_uri, str(number)))

        controller = SweepController(
            stores,
            trials_uri=trials_uri,
            slots=_Capacity(spec, autoscaler=background.submit(autoscaler_config)),
            explain=_explain,
            before=before,
            renew=renew,
            shared=data.share(),
            on_event=on_event,
            discard=discard,
        )
        with interrupting():
            try:
                controller.notify(f"sweep {sweep_id}")
                _run(stores, controller, data=data)
                _repeat(stores, controller)
            except KeyboardInterrupt:
                controller.halt = "interrupted"
                raise
            except Exception as error:
                controller.fail(error)
            finally:
                lost = _close(stores, controller)
            if controller.all_ended:
                background.submit(_delete, trials_uri)
    _raise_error(stores, controller, lost=lost)
    return controller


class _Capacity:
    """Counts the trials that the connected cluster holds or may grow to hold."""

    def __init__(self, spec: ProjectSpec, *, autoscaler: Future[dict[str, Any] | None]) -> None:
        self._spec = spec
        self._autoscaler = autoscaler
        """Its configuration, read once: that costs a task on the head. Until then nothing can be added."""

    def __call__(self) -> int:
        usage = resource_usage.usable()
        config = self._autoscaler.result() if self._autoscaler.done() else {}
        growth = [] if config == {} else growth_by(config, trial_request(self._spec))
        return concurrency(self._spec, usage.nodes, free=usage.free, contenders=usage.contenders, growth=growth)


def _explain(waiters: Sequence[Waiter], *, still_s: float, running: int) -> StallReport:
    """Ask the cluster who holds the resources that trials wait for."""
    import ray

    total, free = resource_usage.nodes()
    own = list(resource_usage.usable().own.values())
    used = resource_usage.holders(without_job=ray.get_runtime_context().get_job_id())
    return stall_report(waiters, still_s=still_s, running=running, total=total, free=free, own=own, holders=used)


def _run(stores: SweepStores, controller: SweepController, *, data: DataCache) -> None:
    """Replay what is in the study, and let Tune run the trials that are left."""
    spec = stores.project.spec
    scheduler = scheduler_of(spec)
    found = [trial for trial in stores.study.get_trials(deepcopy=False) if repeat_of(trial) is None]
    stopped = scheduler.replay(judged(spec, found), trials=[frozen.number for frozen in found])
    for opened in stores.trials.reopen():
        if opened.number in stopped:
            controller.end_stopped(opened)
        else:
            controller.requeue(opened)
    if not controller.done:
        shared = data.shared_data() if spec.sweep.workers_per_trial == 1 else None
        _tune(stores, controller, scheduler=scheduler, shared=shared)


def _repeat(stores: SweepStores, controller: SweepController) -> None:
    """Train the best configurations again with other seeds once the search has ended; no scheduler stops them.

    A second run of Tune, so that trials which still run once the search has found enough are suspended first.
    """
    if controller.error is not None or controller.halt not in {None, "good enough"}:
        return
    if stores.project.spec.sweep.repeats.seeds == 1:
        return
    controller.close()
    add_repeats(stores.study, spec=stores.project.spec)
    if repeats := stores.trials.reopen(repeats=True):
        controller.repeat(repeats)
        _tune(stores, controller, scheduler=unscheduled(), shared=None)  # other seeds, other data


def _tune(
    stores: SweepStores,
    controller: SweepController,
    *,
    scheduler: NumberedScheduler,
    shared: SharedData | None,
) -> None:
    """Let Tune run trials. An interrupt stops these gracefully, where one before or after raises at once."""
    if controller.done:
        return
    with trainable(shared) as actor_class, resumable(stores.parent.resume), stop_on_signal(controller):
        run_tune(controller, trainable=actor_class, scheduler=scheduler, name=stores.parent.sweep_id)


def _close(stores: SweepStores, controller: SweepController) -> TrackingError | None:
    """Close the stores, the study first: it does not depend on MLflow. Return MLflow's error."""
    with undisturbed():
        try:
            controller.close()
        except LeaseLostError as error:
            controller.fail(error)
        except Exception as error:
            controller.fail(error)
            try:
                controller.close()  # the progress display may have failed, which is called only once
            except Exception as again:
                error.add_note(f"Trials are left open: {describe(again)}")
        if isinstance(controller.error, LeaseLostError):
            stores.trial_runs.abandon()
            return None
        try:
            if controller.halt == "interrupted":
                stores.trial_runs.close(wait_s=INTERRUPTED_WAIT_S, patient=False)
            else:
                stores.trial_runs.close()
            stores.write_trials()
        except TrackingError as error:
            return error
    return None


def _raise_error(stores: SweepStores, controller: SweepController, *, lost: TrackingError | None) -> None:
    """Raise the error that ended the sweep, if any, with the command that resumes it."""
    resume = f"Resume it with: {stores.parent.resume}"
    if isinstance(controller.error, LeaseLostError):
        raise controller.error
    if isinstance(controller.error, RaymlopsError):
        controller.error.add_note(resume)
        raise controller.error
    if controller.error is not None:
        raise SweepError(f"the sweep failed: {describe(controller.error)}", hint=resume) from controller.error
    if controller.halt == "interrupted":
        raise KeyboardInterrupt
    if lost is not None:
        raise TrackingError(
            f"the trials are done, but MLflow did not accept all their results: {lost.message}",
            hint=f"The Optuna study {stores.study.study_name} holds every trial. Once MLflow answers, "
            f"{stores.parent.resume} writes what is missing.",
        ) from lost


def _delete(uri: str) -> None:
    with suppress(StorageError, NotFoundError):
        filesystem.delete(uri)
