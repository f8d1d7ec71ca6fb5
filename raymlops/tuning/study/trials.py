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
from typing import TYPE_CHECKING, Any

from raymlops.records import TrialRecord, TrialStatus
from raymlops.tuning.constraints import violations
from raymlops.tuning.search_space import num_trials, point
from raymlops.tuning.study.bulk import bulk
from raymlops.tuning.study.draws import Draws
from raymlops.tuning.study.open_trial import OpenTrial
from raymlops.tuning.study.ranking import ranking
from raymlops.tuning.study.records import (
    ATTRIBUTE,
    SEED,
    STARTED,
    Report,
    added,
    counted,
    in_order_of_end,
    last_value,
    record_of,
    refused,
    repeat_of,
    reports_of,
    stored_reports,
)
from raymlops.tuning.study.storage import storage_errors
from raymlops.tuning.study.view import StudyView
from raymlops.tuning.study.writes import Writes
from raymlops.tuning.trial.reported_values import STEP

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raymlops.config.space import Scalar
    from raymlops.config.sweep import SweepSection
    from raymlops.records import Objective, RepeatRecord

_STATES = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}


class Trials:
    """Ask and tell on one Optuna study. Reports and ends are written at ``flush``, in order."""

    def __init__(
        self,
        study: Any,
        *,
        section: SweepSection,
        objectives: Sequence[Objective],
        clock: Callable[[], float] = time.monotonic,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Read the study.

        Args:
            study: an Optuna study, new or not.
            section: of the sweep.
            objectives: in the order of the study's directions.
            clock: seconds.
            check: raises where another driver has taken the study over.

        Raises:
            StorageError, UnreachableError: the database cannot be read.
        """
        self._study = study
        self._name = f"Optuna's study {study.study_name}"
        self._storage = study._storage  # noqa: SLF001 - one write a trial needs Optuna's documented storage interface
        self._section = section
        self.objectives = tuple(objectives)
        self.constraints = section.constraints
        self._clock = clock
        self.open: dict[int, OpenTrial] = {}
        """Drawn trials that have not ended, by number."""
        with storage_errors(self._name):
            self._view = StudyView(study)
            trials = self._view.trials
        self._writes = Writes(study, view=self._view, check=check)
        self._draws = Draws(study, self._view, section=section, objectives=self.objectives)
        self._unsure = False
        """Whether a trial may have been created whose id is not known."""
        self._beaten_s = clock()
        own = counted(trials)
        self._ended = [record_of(trial, objectives=self.objectives) for trial in in_order_of_end(own)]
        self.repeats = self._count_repeats()
        """How many trials train a configuration again with another seed."""
        others = sum(_enqueued(trial) for trial in own) + sum(bool(record.carried_from) for record in self._ended)
        self.asked = len(own) - self.repeats - others
        """The number of the search's own trials, ended or not, without carried ones."""
        self.refused = sum(refused(trial) for trial in trials if trial.number not in self._view.repeats)
        """How many points the recipe rejected."""
        self._next = len(trials)
        orders = (report.order for trial in trials for report in reports_of(trial).values())
        self._orders = 1 + max((order for order in orders if order is not None), default=-1)
        """How many reports the scheduler has judged."""

    @property
    def total(self) -> int:
        """Return the number of the sweep's own trials at its end, more than wanted where more were drawn before."""
        return max(num_trials(self._section, refused=self.refused), self.asked)

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        """Return the trials that ended by number, carried ones included."""
        return tuple(sorted(self._ended, key=lambda record: record.number))

    @property
    def ended(self) -> tuple[TrialRecord, ...]:
        """Return them in the order in which they ended."""
        return tuple(self._ended)

    @property
    def ranked(self) -> tuple[RepeatRecord, ...]:
        """Return the configurations that were trained with several seeds, best mean first."""
        if not self.repeats:
            return ()
        return ranking(self.records, objectives=self.objectives, constraints=self.constraints)

    def reopen(self, *, repeats: bool = False) -> list[OpenTrial]:
        """Reopen the trials that a previous process left running or waiting: of the search, or ``repeats``.

        Parameters that it had not drawn are drawn as it would have drawn them. What another program has enqueued in the
        study is a trial as long as ``num_trials`` has room for it; others stay in the queue. Call this once, before
        ``ask``.

        Raises:
            StorageError, UnreachableError: the database does not answer; call it again.
        """
        from optuna.trial import TrialState

        with storage_errors(self._name):
            found = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))
            found = [trial for trial in found if (repeat_of(trial) is not None) == repeats]
            enqueued = [trial.number for trial in found if _enqueued(trial)]
            room = max(0, num_trials(self._section, refused=self.refused) - self.asked)
            found = [trial for trial in found if trial.number not in enqueued[room:]]
            # All of them first: the draw depends on which trials run.
            with bulk(self._storage) as rows:
                for trial in found:
                    rows.set_trial_state_values(trial._trial_id, TrialState.RUNNING)  # noqa: SLF001
                    rows.set_trial_system_attr(trial._trial_id, STARTED, False)  # noqa: SLF001
            self.asked += len(enqueued[:room])
            self._view.reload()
            self.repeats = self._count_repeats()
            # A trial whose draw was interrupted is the last.
            for trial in sorted(found, key=lambda trial: trial.number):
                if trial.number not in self.open:
                    self.open[trial.number] = self._reopen(trial)
        return list(self.open.values())

    def prepare(self, *, wait_s: float) -> bool:
        """Return whether ``ask`` takes no longer than about ``wait_s``; if not, flush and draw in the background.

        Raises:
            StorageError, UnreachableError: the database does not answer.
        """
        if self._unsure or self._draws.quick(wait_s):
            return True
        self.flush()
        return self._draws.prepare(self._next, self._fixed(), wait_s=wait_s)

    def ask(self) -> OpenTrial:
        """Flush, and draw a new trial.

        Raises:
            StorageError, UnreachableError: the database does not answer. A trial that was created nevertheless is
                returned by the next call.
        """
        self.flush()
        with storage_errors(self._name):
            created = self._orphan() if self._unsure else None
            if created is None:
                draft = self._draws.next(self._next, self._fixed())
                self._unsure = True
                created = self._view.create(draft)
            self._unsure = False
        trial = OpenTrial(created.number, dict(created.params), created._trial_id)  # noqa: SLF001
        self.asked += 1
        self._next = trial.number + 1
        self.open[trial.number] = trial
        return trial

    def start(self, number: int) -> None:
        """Record that a trial has a process: its time counts from now."""
        trial = self.open[number]
        trial.started_s = self._clock()
        self._writes.start(trial.trial_id, now_s=trial.started_s)

    def stop(self, number: int) -> None:
        """Record that a trial has no process any more."""
        trial = self.open[number]
        trial.before_s, trial.started_s = self._duration_s(trial), None

    def report(
        self,
        number: int,
        *,
        epoch: int,
        value: float,
        metrics: Mapping[str, float],
        best_metrics: Mapping[str, float],
        judged: bool = True,
    ) -> None:
        """Record the state of a trial after an epoch; ``judged`` is whether the scheduler has judged the report.

        ``value`` is the first objective at the best epoch so far: the trial's value if it ended now; ``best_metrics``
        are that epoch's metrics, ``metrics`` those of this one. Optuna keeps ``value`` as the intermediate value of
        ``epoch``, from which the sampler learns about a trial that is stopped later; with several objectives Optuna
        keeps none.
        """
        trial = self.open[number]
        trial.value, trial.epochs, trial.metrics = value, epoch, dict(best_metrics)
        before, several = trial.reports.get(epoch), len(self.objectives) > 1
        # One whose value was not written before the driver died is judged again.
        order = before.order if before and (several or epoch in trial.reported) else None
        if order is None and judged:
            order, self._orders = self._orders, self._orders + 1
        best = all(_same(metrics.get(name, math.nan), amount) for name, amount in best_metrics.items())
        trial.reports[epoch] = report = Report(dict(metrics), order, best, self._duration_s(trial))
        # First the metrics: a value has its place.
        if report != before:
            self._writes.report(trial.trial_id, epoch=epoch, report=report)
        if not several and math.isfinite(value) and trial.reported.get(epoch) != value:
            trial.reported[epoch] = value
            self._writes.value(trial.trial_id, epoch=epoch, value=value)

    def tell(self, number: int, status: TrialStatus, *, reason: str = "", run_id: str | None = None) -> TrialRecord:
        """End a trial. Without a finite value of each objective and constraint its status is ``failed``."""
        trial = self.open[number]
        broken = violations(trial.metrics, constraints=self.constraints)
        values = self._values(trial)
        wrong = "" if status == "failed" else self._unusable(trial, values, broken)
        if wrong:
            status, reason = "failed", reason or wrong
        usable = () if status == "failed" else tuple(value for value in values if value is not None)
        several = len(self.objectives) > 1
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
            repeat_of=trial.repeat_of,
            seed=trial.seed,
            fingerprint=trial.fingerprint,
        )
        self._writes.end(
            trial.trial_id,
            record,
            _STATES[status],
            reports=trial.reports,
            # As Optuna's own `tell`: of a pruned trial the last intermediate value, and none of several objectives.
            values=usable if status == "complete" or (status == "pruned" and not several) else None,
            constraints=broken if usable else {},
            user_attrs={name: trial.metrics[name] for name in self._section.user_attrs if name in trial.metrics},
        )
        del self.open[number]
        self._ended.append(record)
        return record

    def refuse(self, number: int, reason: str) -> None:
        """End a trial whose point the recipe rejects: it is no trial of the sweep, and the sampler learns from it."""
        trial = self.open.pop(number)
        self._writes.refuse(trial.trial_id, reason)
        if trial.repeat_of is not None:
            self.repeats -= 1
            return
        self.asked -= 1
        self.refused += 1

    def suspend(self, number: int) -> None:
        """Suspend a trial until the sweep is resumed.

        Its state is WAITING. Another program that optimizes the study with Optuna's ``ask`` would pick it up.
        """
        trial = self.open.pop(number)
        so_far = TrialRecord(
            number=number,
            params=trial.params,
            status="pruned",
            value=trial.value,
            epochs=trial.epochs,
            duration_s=self._duration_s(trial),
            metrics=trial.metrics,
        )
        self._writes.end(trial.trial_id, so_far, "WAITING", reports=trial.reports)

    def flush(self) -> None:
        """Write reports and ends, in order. What cannot be written stays for the next call.

        Raises:
            UnreachableError: the database does not answer.
            StorageError: it rejects a write, or another process has ended a trial in another state.
        """
        self._writes.flush(now_s=self._clock())

    def heartbeat(self) -> None:
        """Record a heartbeat of the open trials in the study, once an interval.

        Raises:
            StorageError, UnreachableError: the database does not answer.
        """
        if self._clock() - self._beaten_s < self._storage.get_heartbeat_interval():
            return
        with storage_errors(self._name):
            for trial in self.open.values():
                self._storage.record_heartbeat(trial.trial_id)
        self._beaten_s = self._clock()

    def _count_repeats(self) -> int:
        return sum(trial.number in self._view.repeats for trial in counted(self._view.trials))

    def _orphan(self) -> Any:
        """Return the trial that an earlier call created, whose answer was lost with the connection."""
        from optuna.trial import TrialState

        self._view.reload()
        running = (trial for trial in self._view.trials if trial.state == TrialState.RUNNING)
        found = (trial for trial in running if trial.number >= self._next and trial.number not in self.open)
        return next(found, None)

    def _fixed(self) -> Mapping[str, Scalar]:
        return point(self._section, self.asked + self.refused) or {}

    def _reopen(self, trial: Any) -> OpenTrial:
        """Return a trial of a previous process (``FrozenTrial``) with the state that the study has."""
        trial_id = trial._trial_id  # noqa: SLF001 - the storage interface's own key
        params = self._draws.complete(trial_id, number=trial.number)
        self._view.store(trial_id)
        opened = OpenTrial(trial.number, params, trial_id)
        kept = trial.user_attrs.get(ATTRIBUTE, {})
        opened.repeat_of, opened.seed = repeat_of(trial), trial.user_attrs.get(SEED)
        opened.reported = dict(trial.intermediate_values)
        opened.reports = reports_of(trial)
        self._writes.stored[trial_id] = set(stored_reports(trial))
        opened.metrics = {name: value for name, value in kept.get("metrics", {}).items() if value is not None}
        for report in opened.reports.values():
            if report.best:  # written after a suspension, whose own metrics may be older
                opened.metrics = {name: value for name, value in report.metrics.items() if name != STEP}
        opened.value = last_value(trial)
        if len(self.objectives) > 1:
            opened.value = opened.metrics.get(self.objectives[0].metric)
        opened.epochs = max(kept.get("epochs", 0), trial.last_step or 0, *opened.reports)
        opened.before_s = max(kept.get("duration_s", 0.0), *(each.taken_s for each in opened.reports.values()), 0.0)
        return opened

    def _values(self, trial: OpenTrial) -> list[float | None]:
        """Return the value of each objective, None where it was not reported."""
        return [trial.value, *(trial.metrics.get(objective.metric) for objective in self.objectives[1:])]

    def _unusable(self, trial: OpenTrial, values: Sequence[float | None], broken: Mapping[str, float]) -> str:
        """Return why a trial has no usable result; empty where it has."""
        for objective, value in zip(self.objectives, values, strict=True):
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
        return trial.before_s + (0.0 if trial.started_s is None else self._clock() - trial.started_s)


def _enqueued(trial: Any) -> bool:
    """Return whether another program has enqueued an Optuna trial, which no driver has taken from the queue yet."""
    return not trial.state.is_finished() and added(trial)


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))
