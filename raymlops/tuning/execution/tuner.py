"""The Ray Tune run of a sweep: its configuration, and Tune's process-wide settings and bugs (2.60) for that time.

Owns what Tune is given and what of it is replaced; each replacement says what is wrong with the original. Everything is
restored afterwards. Tune's own files serve its restore, which a sweep never makes: the study and MLflow hold the state.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ray import tune
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import RayActorError, RayTaskError
from ray.tune.execution.tune_controller import TuneController

from raymlops.cluster.auth import variables_set
from raymlops.cluster.process_wide import SharedContext
from raymlops.display import quiet
from raymlops.signals import handled_signals
from raymlops.storage.scratch import scratch
from raymlops.tuning.execution.tune_hooks import Handout, SweepCallback, SweepSearcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from raymlops.tuning.execution.controller import SweepController
    from raymlops.tuning.execution.schedulers import NumberedScheduler

GRACE_S = 15.0
"""Longer than Tune needs to end trials that do not answer."""
ACTOR_START_S = 3.0
"""How long a trial waits for its own process before it takes an idle one: Ray needs about a second to reserve free
resources."""

# Ray 2.60 reads these from the environment only.
SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard file for each trial
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # its handler is never removed after a sweep that was not interrupted
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the reason is in the trial's record
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints tables even at verbosity 0
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a recipe's relative paths mean the same in a trial as in a run
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # no snapshot of all trials every ten seconds
    "TUNE_MAX_PENDING_TRIALS_PG": "100000",  # by default Tune starts processes one by one; the controller limits them
}


def run_tune(controller: SweepController, *, trainable: Any, scheduler: NumberedScheduler, name: str) -> None:
    """Run trials until the controller has none left or stops."""
    callback = SweepCallback(controller)
    scheduler.before_start = callback.withdraw
    with prepared_tune(), scratch() as folder:
        tune.Tuner(
            trainable,
            param_space={},
            tune_config=tune.TuneConfig(
                search_alg=Handout(SweepSearcher(controller), trainable),
                scheduler=scheduler,
                num_samples=-1,  # the searcher says when it is finished: to Tune a resumed trial is a new one
                reuse_actors=True,
                trial_name_creator=lambda trial: f"trial-{trial.config['number']}",
                # A resumed trial is another one to Tune, with its own file for the error that ended its process.
                trial_dirname_creator=lambda trial: f"trial-{trial.config['number']}-{trial.trial_id}",
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(folder),
                callbacks=[callback],
                stop=callback,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        ).fit()


_shared = SharedContext()


@contextmanager
def prepared_tune(*, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Apply the settings, show only critical messages of Tune's log, and replace two of its methods.

    All of that is the process's: the last of several sweeps in it restores it.
    """

    @contextmanager
    def prepared() -> Iterator[None]:
        with quiet("ray.tune", level=logging.CRITICAL), variables_set(SETTINGS), patched_tune(clock=clock):
            yield

    with _shared.entered(prepared):
        yield


@contextmanager
def patched_tune(*, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Replace two methods of Tune."""
    failed = RayActorManager._actor_task_failed  # noqa: SLF001
    reuse = TuneController._maybe_reuse_cached_actor  # noqa: SLF001
    requested_s: WeakKeyDictionary[Any, float] = WeakKeyDictionary()

    def actor_task_failed(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        # A process that the memory monitor killed raises neither of the two that Tune expects, which ends the sweep.
        if not isinstance(exception, RayActorError | RayTaskError):
            exception = RayActorError(None, str(exception))
        failed(self, tracked_actor_task, exception)

    def maybe_reuse_cached_actor(self: Any, trial: Any) -> bool:
        # A trial whose own process is starting would take an idle one and end its own, and so would the next: one
        # process would then run all trials of a sweep, as long as they are shorter than a start. One whose process
        # waits for resources must take it: others may hold those forever, and Tune keeps idle processes for it.
        own = self._trial_to_actor.get(trial)
        if own is None:
            requested_s[trial] = clock()  # it gets an idle process now, or requests one
        elif trial not in self._resetting_trials:
            recent = clock() - requested_s.get(trial, -ACTOR_START_S) < ACTOR_START_S
            if recent or self._actor_manager.is_actor_started(own):
                return False
        return bool(reuse(self, trial))

    RayActorManager._actor_task_failed = actor_task_failed  # noqa: SLF001
    TuneController._maybe_reuse_cached_actor = maybe_reuse_cached_actor  # noqa: SLF001
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = failed  # noqa: SLF001
        TuneController._maybe_reuse_cached_actor = reuse  # noqa: SLF001


@contextmanager
def stop_on_signal(controller: SweepController) -> Iterator[None]:
    """Stop the trials gracefully on Ctrl-C and SIGTERM; a second signal ``GRACE_S`` later raises at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # other threads cannot handle signals
        return
    first_s: float | None = None

    def halt(number: int, frame: Any) -> None:  # noqa: ARG001 - the signature of a handler
        nonlocal first_s
        if controller.halt in {None, "good enough"}:  # the repeats would follow
            controller.halt = "interrupted"
        if first_s is not None and time.monotonic() - first_s > GRACE_S:
            raise KeyboardInterrupt
        first_s = first_s or time.monotonic()

    # SIGUSR1 too: Tune (2.60) installs a handler for it and keeps it.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    for number in handled_signals():
        signal.signal(number, halt)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
