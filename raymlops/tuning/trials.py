"""The trials of one sweep: asked for, reported on and told, each exactly once, to an Optuna study in SQL storage.

Owns what a trial's state means: ``complete`` ran to its end, ``pruned`` was stopped by the scheduler or by the end of
the sweep, ``failed`` raised, gave NaN or never reported the metric. Knows nothing of Ray Tune or MLflow, so
that it can be tested with invented results.

Ray's own ``OptunaSearch`` (2.60) is not used: it tells Optuna COMPLETE for what ASHA stopped, which teaches the
sampler that a third of the epochs is the whole result, and a NaN makes its ``tell`` raise, which leaves the
trial RUNNING for ever.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raymlops.records import TrialRecord, TrialStatus
from raymlops.tuning.space import draw, draw_order
from raymlops.tuning.storage import quiet_optuna

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from raymlops.config.space import Distribution, Scalar

REASON = "raymlops.reason"
RUN_ID = "raymlops.run_id"


@dataclass
class OpenTrial:
    """A trial that has not ended yet."""

    number: int
    params: dict[str, Scalar]
    optuna: Any
    """The Optuna trial; its number is ours."""
    started: float
    value: float | None = None
    """The sweep's metric at the best epoch so far."""
    epochs: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


class Trials:
    """Ask/tell on one Optuna study."""

    def __init__(
        self, study: Any, *, space: Mapping[str, Distribution], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._study = study
        self._space = space
        self._order = draw_order(space)
        self._clock = clock
        self._open: dict[int, OpenTrial] = {}
        self._ended: list[TrialRecord] = []

    @property
    def study_name(self) -> str:
        """Return the name of the Optuna study."""
        return str(self._study.study_name)

    @property
    def open(self) -> tuple[int, ...]:
        """Return the numbers of the trials that have not ended."""
        return tuple(self._open)

    @property
    def asked(self) -> int:
        """Return how many trials were asked for."""
        return len(self._open) + len(self._ended)

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        """Return the trials that ended, by number."""
        return tuple(sorted(self._ended, key=lambda record: record.number))

    def ask(self) -> OpenTrial:
        """Draw the parameters of a new trial."""
        with quiet_optuna():
            trial = self._study.ask()
            params = draw(trial, self._space, order=self._order)
        opened = OpenTrial(trial.number, params, trial, self._clock())
        self._open[opened.number] = opened
        return opened

    def report(self, number: int, *, epoch: int, value: float, metrics: Mapping[str, float]) -> None:
        """Record the state of a trial after an epoch.

        ``value`` is the sweep's metric at the best epoch so far, which is what the trial would be worth if it
        ended now; ``metrics`` are that epoch's. Optuna keeps it as the intermediate value of ``epoch``, from which the
        sampler judges a trial that is stopped later.
        """
        trial = self._open[number]
        trial.value, trial.epochs, trial.metrics = value, epoch, dict(metrics)
        if math.isfinite(value):
            trial.optuna.report(value, epoch)

    def tell(self, number: int, status: TrialStatus, *, reason: str = "", run_id: str | None = None) -> TrialRecord:
        """End a trial. One without a finite value fails, whatever ``status`` says."""
        trial = self._open[number]
        if status != "failed" and (trial.value is None or not math.isfinite(trial.value)):
            what = "its metric was never reported" if trial.value is None else f"its metric is {trial.value}"
            status, reason = "failed", reason or what
        if reason:
            trial.optuna.set_user_attr(REASON, reason)
        if run_id is not None:
            trial.optuna.set_user_attr(RUN_ID, run_id)
        self._tell_optuna(trial, status)
        record = TrialRecord(
            number=number,
            params=trial.params,
            status=status,
            value=None if status == "failed" else trial.value,
            epochs=trial.epochs,
            duration_s=self._clock() - trial.started,
            reason=reason,
            run_id=run_id,
            metrics=trial.metrics,
        )
        # Only now: a storage that refused leaves the trial open, for the sweep's end to try again.
        del self._open[number]
        self._ended.append(record)
        return record

    def _tell_optuna(self, trial: OpenTrial, status: TrialStatus) -> None:
        from optuna.trial import TrialState

        with quiet_optuna():
            if status == "complete":
                self._study.tell(trial.optuna, trial.value)
            else:
                state = TrialState.PRUNED if status == "pruned" else TrialState.FAIL
                # skip_if_finished is not used: telling a trial twice is a defect that has to show.
                self._study.tell(trial.optuna, state=state)
