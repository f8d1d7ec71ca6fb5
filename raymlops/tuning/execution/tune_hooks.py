"""What Ray Tune calls during a sweep: a searcher, a callback and a stopper, thin over the sweep's controller.

Owns how Tune's results are read. An exception in a hook would come back as the text of a ``TuneError`` with the
sweep half stopped, so each is kept by the controller and the sweep is halted in order.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import cloudpickle
from ray.tune import Callback, Stopper
from ray.tune.search import Searcher

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.tuning.execution.controller import Conductor


def _kept(method: Callable[..., Any]) -> Callable[..., Any]:
    """Hand what a hook raises to the conductor."""

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self.conductor.failed(error)
            return None

    return wrapped


class _Hook:
    conductor: Conductor

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its hooks into the experiment's folder for a restore that we never make:
        # the study in SQL is the one truth, and connections cannot be pickled.
        return {}


class SweepSearcher(_Hook, Searcher):  # type: ignore[misc]
    """Hands out trials; concurrency is limited here, so that a trial is drawn when it can run and not before."""

    def __init__(self, conductor: Conductor) -> None:
        super().__init__()
        self.conductor = conductor

    def suggest(self, trial_id: str) -> Any:  # noqa: ARG002 - Tune's signature
        """Return the next trial's configuration, None to wait, or FINISHED."""
        try:
            config = self.conductor.next_trial()
        except Exception as error:
            self.conductor.failed(error)
            return Searcher.FINISHED
        # Not before every trial has ended: one whose process dies is handed out again.
        return Searcher.FINISHED if config is None and self.conductor.done else config

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Do nothing: the callback hears of the same end together with the trial and its last result."""

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: the study is in SQL."""


class SweepCallback(_Hook, Callback):  # type: ignore[misc]
    """Passes on epochs and ends."""

    def __init__(self, conductor: Conductor) -> None:
        self.conductor = conductor
        self._trials: Any = ()

    @_kept
    def on_step_begin(self, iteration: int, trials: Any, **info: Any) -> None:  # noqa: ARG002
        """Let the conductor catch up, and keep Tune's list of trials: it is what ``end_processes`` ends."""
        self._trials = trials
        self.conductor.between_steps()

    def end_processes(self) -> None:
        """End the processes of all trials at once, in mid-epoch."""
        for trial in self._trials:
            if trial.temporary_state.ray_actor is not None:
                ray.kill(trial.temporary_state.ray_actor)

    @_kept
    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Record that a trial runs."""
        self.conductor.started(trial.config["number"])

    @_kept
    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:  # noqa: ARG002
        """Record an epoch."""
        self.conductor.result(trial.config["number"], result)

    @_kept
    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Record the end of a trial that its own process or the scheduler ended."""
        result = trial.last_result
        self.conductor.end(trial.config["number"], result.get("outcome") or "pruned", reason=result.get("reason", ""))

    @_kept
    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Record that a trial's process is gone; what its own code raises comes as a result."""
        self.conductor.died(trial.config["number"], _death(trial))


class SweepStopper(_Hook, Stopper):  # type: ignore[misc]
    """Stops everything when the conductor is halting."""

    def __init__(self, conductor: Conductor, *, callback: SweepCallback) -> None:
        self.conductor = conductor
        self._callback = callback

    def __call__(self, trial_id: str, result: Any) -> bool:  # noqa: ARG002
        """Stop no single trial: that is the scheduler's."""
        return False

    def stop_all(self) -> bool:
        """Return whether the sweep is to stop now; if so, its books are closed and its processes ended.

        In this order and here: once told, Tune waits up to ten seconds for processes in mid-epoch, and SIGTERM of a
        job leaves three.
        """
        if self.conductor.halting:
            try:
                self.conductor.close()
                self._callback.end_processes()
            except Exception as error:
                self.conductor.failed(error)
        return self.conductor.halting


def _death(trial: Any) -> BaseException | None:
    """Return what ended a trial's process. Tune (2.60) keeps the error only in a file of this process."""
    if trial.pickled_error_file is None:
        return None
    error: BaseException = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    return error
