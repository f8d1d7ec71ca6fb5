"""Ask and tell on the Optuna study of a sweep, with idempotent deferred writes.

Owns what a trial's state means: ``complete`` ran to its end, ``pruned`` was stopped by the scheduler or by the end of
the sweep, ``failed`` raised, gave NaN or did not report a required metric. Knows nothing of Ray Tune or MLflow.

The study is the source of truth: a new ``Trials`` on it, after any crash, resumes the sweep. A trial is drawn from its
number and the ended trials alone (``samplers``), so that the same trials are drawn. Reports and ends are queued and
written in order at ``flush``, which may be repeated: the database may be unreachable for a while.

Ray's own ``OptunaSearch`` (2.60) is not used: it tells Optuna COMPLETE for a trial that ASHA stopped, which teaches the
sampler that a third of the epochs is the whole result, and a NaN makes its ``tell`` raise, which leaves the trial
RUNNING forever.
"""

from __future__ import annotations

import math
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.errors import StorageError
from raymlops.records import TrialRecord, TrialStatus
from raymlops.tuning.study.ask import OpenTrial, TrialFactory
from raymlops.tuning.study.records import ATTRIBUTE, attribute, history_of, record_of
from raymlops.tuning.study.selection import violations
from raymlops.tuning.study.storage import quiet_optuna, storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from raymlops.config.space import Scalar
    from raymlops.config.sweep import SweepSection
    from raymlops.records import Objective


_STATES = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}


@dataclass(frozen=True)
class _Write:
    """One idempotent write about a trial."""

    trial: Any
    act: Callable[[], object]
    state: str = ""
    """Optuna's state that ends the trial; empty where it does not end."""


class Writes:
    """The queue of pending writes to one Optuna study."""

    def __init__(self, study: Any) -> None:
        self._study = study
        self._storage = study._storage  # noqa: SLF001 - Optuna's storage interface, which is documented
        self._queue: deque[_Write] = deque()

    def report(self, trial: Any, *, epoch: int, value: float) -> None:
        """Queue a value of an Optuna trial for an epoch. A later one for the same epoch replaces it.

        Optuna's own ``report`` ignores an epoch that the trial reported before it was interrupted.
        """
        self._add(trial, lambda: self._storage.set_trial_intermediate_value(_id(trial), epoch, float(value)))

    def end(
        self,
        trial: Any,
        record: TrialRecord,
        *,
        history: Mapping[int, Mapping[str, float]],
        values: Sequence[float] | None,
        constraints: Mapping[str, float],
    ) -> None:
        """Queue the end of an Optuna trial, with the values and constraints for its sampler.

        ``study.tell`` would read the whole trial first. It also calls the sampler's ``after_trial``, which in TPE, GP
        and NSGA-II (Optuna 5.0) only calls a ``constraints_func``, which ``set_constraint`` replaces.
        """
        from optuna.trial import TrialState

        state = _STATES[record.status]

        def write() -> None:
            known = trial.constraints if constraints else {}
            for key, excess in constraints.items():
                if key not in known:
                    trial.set_constraint(key, excess)
            self._storage.set_trial_user_attr(_id(trial), ATTRIBUTE, attribute(record, history))
            self._storage.set_trial_state_values(_id(trial), TrialState[state], values)

        self._add(trial, write, state)

    def wait(self, trial: Any, record: TrialRecord, *, history: Mapping[int, Mapping[str, float]]) -> None:
        """Queue the suspension of an Optuna trial, with its progress."""
        from optuna.trial import TrialState

        def write() -> None:
            self._storage.set_trial_user_attr(_id(trial), ATTRIBUTE, attribute(record, history))
            self._storage.set_trial_state_values(_id(trial), TrialState.WAITING)

        self._add(trial, write)

    def flush(self) -> None:
        """Write everything in order. A write that fails stays in the queue, with those behind it.

        Raises:
            UnreachableError: the database does not answer.
            StorageError: it rejects a write, or another process has ended the trial in another state, which is final;
                this write alone is dropped.
        """
        if not self._queue:
            return
        with quiet_optuna(), storage_errors(f"Optuna's study {self._study.study_name}"):
            while self._queue:
                try:
                    self._written(self._queue[0])
                except StorageError:
                    self._queue.popleft()
                    raise
                self._queue.popleft()

    def _add(self, trial: Any, act: Callable[[], object], state: str = "") -> None:
        self._queue.append(_Write(trial, act, state))

    def _written(self, write: _Write) -> None:
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            write.act()
        except UpdateFinishedTrialError as error:
            # Written before, and the answer was lost? For a report, the end that follows it decides.
            stored = self._storage.get_trial(_id(write.trial)).state.name
            if write.state and write.state != stored:
                raise StorageError(
                    f"trial {write.trial.number} of Optuna's study {self._study.study_name} was ended by another "
                    f"process: {stored} there, {write.state} here",
                    hint="Let no other process optimize this study: only raymlops may run its trials.",
                ) from error


def _id(trial: Any) -> int:
    return int(trial._trial_id)  # noqa: SLF001 - the storage interface asks for it, and a trial has no public id


__all__ = ["OpenTrial", "Trials", "history_of"]


class Trials:
    """Ask and tell on one Optuna study. Reports and ends are written at ``flush``, in order."""

    def __init__(
        self,
        study: Any,
        *,
        section: SweepSection,
        objectives: Sequence[Objective],
        point: Callable[[int], Mapping[str, Scalar] | None] = lambda _index: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the study.

        Args:
            study: an Optuna study, new or not.
            section: of the sweep.
            objectives: in the order of the study's directions.
            point: the fixed parameters of the sweep's own trial at an index; None where it has none.
            clock: seconds.

        Raises:
            StorageError, UnreachableError: the database cannot be read.
        """
        self._study = study
        self._storage = study._storage  # noqa: SLF001 - one write a trial needs Optuna's documented storage interface
        self._section = section
        self._objectives = tuple(objectives)
        self._point = point
        self._factory = TrialFactory(study, section=section, objectives=self._objectives, clock=clock)
        self._clock = clock
        self._open: dict[int, OpenTrial] = {}
        self._writes = Writes(study)
        self._created: int | None = None
        self._beaten_s = clock()
        with self._errors():
            trials = study.get_trials(deepcopy=False)
        self._ended = [record_of(trial, objectives=self._objectives) for trial in trials if trial.state.is_finished()]
        self._asked = len(trials) - sum(bool(record.carried_from) for record in self._ended)
        self._next = len(trials)

    @property
    def study_name(self) -> str:
        """Return the name of the Optuna study."""
        return str(self._study.study_name)

    @property
    def open(self) -> tuple[int, ...]:
        """Return the numbers of the open trials."""
        return tuple(self._open)

    @property
    def asked(self) -> int:
        """Return the number of the sweep's own trials, ended or not, without carried ones."""
        return self._asked

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        """Return the trials that ended by number, carried ones included."""
        return tuple(sorted(self._ended, key=lambda record: record.number))

    def reopen(self) -> list[OpenTrial]:
        """Reopen the trials that a previous process left running or waiting.

        Parameters that it had not drawn are drawn as it would have drawn them. Call this once, before ``ask``.

        Raises:
            StorageError, UnreachableError: the database does not answer; call it again.
        """
        from optuna.trial import TrialState

        unfinished = (TrialState.RUNNING, TrialState.WAITING)
        with self._errors():
            found = self._study.get_trials(deepcopy=False, states=unfinished)
            # All of them first: the draw depends on which trials run.
            for trial in found:
                if trial.state == TrialState.WAITING:
                    self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)  # noqa: SLF001
            # A trial whose draw was interrupted is the last.
            for trial in sorted(found, key=lambda trial: trial.number):
                if trial.number not in self._open:
                    self._open[trial.number] = self._factory.reopen(trial)
        return list(self._open.values())

    def ask(self) -> OpenTrial:
        """Flush, and draw the parameters of a new trial.

        Raises:
            StorageError, UnreachableError: the database does not answer. A trial that was created already is drawn by
                the next call.
        """
        self.flush()
        with self._errors():
            if self._created is None:
                self._created = self._factory.create(self._point(self._asked))
            trial = self._factory.draw(self._created, number=self._next)
        self._created = None
        self._asked += 1
        self._next = trial.number + 1
        self._open[trial.number] = trial
        return trial

    def report(
        self,
        number: int,
        *,
        epoch: int,
        value: float,
        metrics: Mapping[str, float],
        best_metrics: Mapping[str, float],
    ) -> None:
        """Record the state of a trial after an epoch.

        ``value`` is the first objective at the best epoch so far: the trial's value if it ended now; ``best_metrics``
        are that epoch's metrics, ``metrics`` those of this one. Optuna keeps ``value`` as the intermediate value of
        ``epoch``, from which the sampler learns about a trial that is stopped later; with several objectives Optuna
        keeps none.
        """
        trial = self._open[number]
        trial.value, trial.epochs, trial.metrics = value, epoch, dict(best_metrics)
        trial.history[epoch] = dict(metrics)
        if len(self._objectives) == 1 and math.isfinite(value) and trial.reported.get(epoch) != value:
            trial.reported[epoch] = value
            self._writes.report(trial.optuna, epoch=epoch, value=value)

    def tell(self, number: int, status: TrialStatus, *, reason: str = "", run_id: str | None = None) -> TrialRecord:
        """End a trial. Without a finite value of each objective and constraint its status is ``failed``."""
        trial = self._open[number]
        broken = violations(trial.metrics, constraints=self._section.constraints)
        values = self._values(trial)
        wrong = "" if status == "failed" else self._unusable(trial, values, broken)
        if wrong:
            status, reason = "failed", reason or wrong
        usable = () if status == "failed" else tuple(value for value in values if value is not None)
        several = len(self._objectives) > 1
        record = TrialRecord(
            number=number,
            params=trial.params,
            status=status,
            value=usable[0] if usable else None,
            epochs=trial.epochs,
            duration_s=self._duration_s(trial),
            reason=reason,
            run_id=run_id,
            metrics=trial.metrics,
            values=usable if several else (),
            feasible=not usable or all(excess <= 0 for excess in broken.values()),
        )
        self._writes.end(
            trial.optuna,
            record,
            history=trial.history,
            # As Optuna's own `tell`: of a pruned trial the last intermediate value, and none of several objectives.
            values=usable if status == "complete" or (status == "pruned" and not several) else None,
            constraints=broken if usable else {},
        )
        del self._open[number]
        self._ended.append(record)
        return record

    def suspend(self, number: int) -> None:
        """Suspend a trial until the sweep is resumed.

        Its state is WAITING. Another program that optimizes the study with Optuna's ``ask`` would pick it up.
        """
        trial = self._open.pop(number)
        so_far = TrialRecord(
            number=number,
            params=trial.params,
            status="pruned",
            value=trial.value,
            epochs=trial.epochs,
            duration_s=self._duration_s(trial),
            metrics=trial.metrics,
        )
        self._writes.wait(trial.optuna, so_far, history=trial.history)

    def flush(self) -> None:
        """Write reports and ends, in order. What cannot be written stays for the next call.

        Raises:
            UnreachableError: the database does not answer.
            StorageError: it rejects a write, or another process has ended a trial in another state.
        """
        self._writes.flush()

    def heartbeat(self) -> None:
        """Record a heartbeat of the open trials in the study, once an interval.

        Raises:
            StorageError, UnreachableError: the database does not answer.
        """
        every_s = getattr(self._storage, "get_heartbeat_interval", lambda: None)()
        if every_s is None or self._clock() - self._beaten_s < every_s:
            return
        with self._errors():
            for trial in self._open.values():
                self._storage.record_heartbeat(trial.optuna._trial_id)  # noqa: SLF001
        self._beaten_s = self._clock()

    def _values(self, trial: OpenTrial) -> list[float | None]:
        """Return the value of each objective, None where it was not reported."""
        return [trial.value, *(trial.metrics.get(objective.metric) for objective in self._objectives[1:])]

    def _unusable(self, trial: OpenTrial, values: Sequence[float | None], broken: Mapping[str, float]) -> str:
        """Return why a trial has no usable result; empty where it has."""
        for objective, value in zip(self._objectives, values, strict=True):
            if value is None or not math.isfinite(value):
                what = "its metric" if len(values) == 1 else f"its objective {objective.metric}"
                return f"{what} was never reported" if value is None else f"{what} is {value}"
        for key, excess in broken.items():
            if not math.isfinite(excess):
                name = key.rpartition(" ")[0]
                value = trial.metrics.get(name)
                return f"its constraint {name} " + ("was never reported" if value is None else f"is {value}")
        return ""

    def _duration_s(self, trial: OpenTrial) -> float:
        return trial.before_s + self._clock() - trial.started

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with quiet_optuna(), storage_errors(f"Optuna's study {self._study.study_name}"):
            yield
