"""The hooks that Ray Tune calls during a sweep: a searcher, and a callback that also stops it, over the controller.

Owns how Tune's results are read. Tune would turn an exception in a hook into the text of a ``TuneError`` and leave the
sweep half stopped, so the controller keeps the exception and stops the sweep gracefully.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import cloudpickle
from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial
from ray.tune.search import Searcher, SearchGenerator

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.tuning.execution.controller import SweepController


def _kept(method: Callable[..., Any]) -> Callable[..., Any]:
    """Hand an exception of a hook to the controller."""

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self.controller.fail(error)
            return None

    return wrapped


class _Hook:
    controller: SweepController

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its hooks into the experiment's folder for a restore that a sweep never makes; connections cannot
        # be pickled.
        return {}


class SweepSearcher(_Hook, Searcher):  # type: ignore[misc]
    """Hands out trials. Concurrency is limited here, so that a trial is drawn when it can run and not before."""

    def __init__(self, controller: SweepController) -> None:
        super().__init__()
        self.controller = controller

    def suggest(self, trial_id: str) -> Any:  # noqa: ARG002 - Tune's signature
        """Return the next trial's configuration, None to be asked again, or FINISHED."""
        try:
            config = self.controller.next_trial()
        except Exception as error:
            self.controller.fail(error)
            return Searcher.FINISHED
        # Not before every trial has ended: one whose process dies is handed out again.
        return Searcher.FINISHED if config is None and self.controller.done else config

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Do nothing: the callback gets the same event with the trial and its last result."""

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: the study is in SQL."""


class Handout(SearchGenerator):  # type: ignore[misc]
    """Tune's generator of trials over a ``SweepSearcher``; without a slot for another trial it counts as finished.

    Then Tune keeps no idle process for a next trial: another sweep or an endpoint may wait for its resources, and the
    last trial of this one may take hours. Tune asks again after each step, and ends only once no trial is left.
    """

    def __init__(self, searcher: SweepSearcher, trainable: Any) -> None:
        super().__init__(searcher)
        self._trial_class = _trial_class(trainable)

    def is_finished(self) -> bool:
        """Return whether no trial can be handed out now."""
        return bool(super().is_finished()) or not self.searcher.controller.ready

    def create_trial_if_possible(self, experiment_spec: dict[str, Any]) -> Trial | None:
        """Return the next trial; None if no trial can be handed out now, or ever again.

        Tune's own (2.60) puts the experiment through a parser of command lines for each trial.
        """
        trial_id = Trial.generate_id()
        config = self.searcher.suggest(trial_id)
        if config == Searcher.FINISHED:
            self._finished = True
        if config is None or config == Searcher.FINISHED:
            return None
        return self._trial_class(
            experiment_spec["run"],
            config=config,
            trial_id=trial_id,
            experiment_tag=str(config["number"]),
            stub=True,
            **{name: experiment_spec.get(name) for name in _EXPERIMENT},
        )


_EXPERIMENT = ("storage", "checkpoint_config", "trial_name_creator", "trial_dirname_creator")
"""What trials have of their experiment."""


def _trial_class(trainable: Any) -> type[Trial]:
    """Return Tune's trial of a trainable class that is known.

    Tune's own (2.60) asks Ray's head for it three times for each trial, and is written to a file at the end. It asks
    its process twice for a result that no hook reads, and waits for the answer where the trial ends without a report.
    """

    class SweepTrial(Trial):  # type: ignore[misc]
        def get_trainable_cls(self) -> Any:
            return trainable

        def get_json_state(self) -> tuple[str, str]:
            return "{}", "{}"

        def set_ray_actor(self, ray_actor: Any) -> None:
            self.temporary_state.ray_actor = ray_actor

    return SweepTrial


class SweepCallback(_Hook, Callback, Stopper):  # type: ignore[misc]
    """Forwards starts, epochs and ends, and stops the sweep when the controller says so."""

    def __init__(self, controller: SweepController) -> None:
        self.controller = controller
        self._trials: Any = ()

    @_kept
    def on_step_begin(self, iteration: int, trials: Any, **info: Any) -> None:  # noqa: ARG002
        """Run the controller's periodic work, and keep Tune's list of trials for ``stop_all``."""
        self._trials = trials
        self.controller.tick()

    @_kept
    def withdraw(self, tune_controller: Any) -> None:
        """Withdraw the trials that have lost their slot before they had a process."""
        for number in self.controller.surplus:
            for trial in [trial for trial in tune_controller.get_live_trials() if trial.config["number"] == number]:
                process = tune_controller._trial_to_actor.get(trial)  # noqa: SLF001
                if process is not None and not tune_controller._actor_manager.is_actor_started(process):  # noqa: SLF001
                    # Tune stops it as one that had a process, and would keep an idle one for it.
                    tune_controller._unstage_trial_with_resources(trial)  # noqa: SLF001
                    tune_controller.stop_trial(trial)

    @_kept
    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Record that a trial has a process."""
        self.controller.started(trial.config["number"])

    @_kept
    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:  # noqa: ARG002
        """Record an epoch."""
        self.controller.result(trial.config["number"], result)

    @_kept
    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Record the end of a trial, by itself or by the scheduler; one that never had a process was withdrawn."""
        result, number = trial.last_result, trial.config["number"]
        if trial.status == trial.PENDING:
            self.controller.withdrawn(number)
            return
        reason, diverged = result.get("reason", ""), result.get("diverged", False)
        self.controller.end(number, result.get("outcome") or "pruned", reason=reason, diverged=diverged)

    @_kept
    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Record that a trial's process died; an exception of the trial's own code comes as a result."""
        self.controller.process_died(trial.config["number"], _death(trial))

    def __call__(self, trial_id: str, result: Any) -> bool:  # noqa: ARG002
        """Stop no single trial: the scheduler does that."""
        return False

    def stop_all(self) -> bool:
        """Return whether to stop the sweep now; if so, close the study first and kill the processes.

        Here and in this order: after this, Tune waits up to ten seconds for processes in the middle of an epoch, and
        a job has three seconds after SIGTERM.
        """
        if self.controller.halting:
            try:
                self.controller.close()
            except Exception as error:
                self.controller.fail(error)
            for trial in self._trials:
                if trial.temporary_state.ray_actor is not None:
                    ray.kill(trial.temporary_state.ray_actor)
        return self.controller.halting


def _death(trial: Any) -> BaseException | None:
    """Return the error that ended a trial's process. Tune (2.60) keeps it only in a file."""
    if trial.pickled_error_file is None:
        return None
    error: BaseException = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    return error
