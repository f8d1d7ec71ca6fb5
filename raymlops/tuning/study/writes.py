"""Deferred writes to the study of a sweep: queued in order, idempotent, repeated until the database answers."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.errors import StorageError
from raymlops.tuning.study.records import ATTRIBUTE, REFUSED, attribute, report_key
from raymlops.tuning.study.storage import storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raymlops.records import TrialRecord
    from raymlops.tuning.study.records import Report


_BY_RECIPE = "accepted by the recipe"


@dataclass(eq=False)
class _Write:
    """One idempotent write about a trial."""

    trial: Any
    act: Callable[[], object]
    state: str = ""
    """Optuna's state that ends the trial; empty where it does not end."""
    epoch: int | None = None
    """The epoch of a report whose metrics get an attribute of their own."""


class Writes:
    """The queue of pending writes to one Optuna study."""

    def __init__(self, study: Any, *, check: Callable[[], None] = lambda: None) -> None:
        """Call ``check`` before each flush: it raises where another process may write now."""
        self._study = study
        self._check = check
        self._storage = study._storage  # noqa: SLF001 - Optuna's storage interface, which is documented
        self._queue: deque[_Write] = deque()
        self.stored: dict[int, set[int]] = {}
        """Epochs whose reports have an attribute of their own, by Optuna's id of the trial."""

    def value(self, trial: Any, *, epoch: int, value: float) -> None:
        """Queue a value of an Optuna trial for an epoch. A later one for the same epoch replaces it.

        Optuna's own ``report`` ignores an epoch that the trial reported before it was interrupted.
        """
        self._queue.append(
            _Write(trial, lambda: self._storage.set_trial_intermediate_value(_id(trial), epoch, float(value)))
        )

    def report(self, trial: Any, *, epoch: int, report: Report) -> None:
        """Queue the metrics of an Optuna trial for an epoch; they are part of its end if that is queued in time."""

        def act() -> None:
            self._storage.set_trial_system_attr(_id(trial), report_key(epoch), report.to_dict())
            self.stored.setdefault(_id(trial), set()).add(epoch)

        self._queue.append(_Write(trial, act, epoch=epoch))

    def end(
        self,
        trial: Any,
        record: TrialRecord,
        state: str,
        *,
        reports: Mapping[int, Report],
        values: Sequence[float] | None = None,
        constraints: Mapping[str, float] | None = None,
        user_attrs: Mapping[str, float] | None = None,
    ) -> None:
        """Queue the end of an Optuna trial in ``state``, with the values and constraints for its sampler.

        A trial in the state WAITING is suspended. ``reports`` are all of the trial; those that are not stored yet are
        stored with its end.

        ``study.tell`` would read the whole trial first. It also calls the sampler's ``after_trial``, which in TPE, GP
        and NSGA-II (Optuna 5.0) only calls a ``constraints_func``, which ``set_constraint`` replaces.
        """
        from optuna.trial import TrialState

        def write() -> None:
            known = trial.constraints if constraints else {}
            for key, excess in (constraints or {}).items():
                if key not in known:
                    trial.set_constraint(key, excess)
            for name, value in (user_attrs or {}).items():
                self._storage.set_trial_user_attr(_id(trial), name, value)
            stored = self.stored.get(_id(trial), ())
            rest = {epoch: report for epoch, report in reports.items() if epoch not in stored}
            history = {epoch: report.metrics for epoch, report in rest.items()}
            orders = {epoch: report.order for epoch, report in rest.items() if report.order is not None}
            self._storage.set_trial_user_attr(_id(trial), ATTRIBUTE, attribute(record, history, orders=orders))
            self._storage.set_trial_state_values(_id(trial), TrialState[state], values)

        kept = self.stored.get(_id(trial), set()) | {None}  # one that is stored has changed
        self._queue = deque(one for one in self._queue if one.trial is not trial or one.epoch in kept)
        self._queue.append(_Write(trial, write, "" if state == "WAITING" else state))

    def refuse(self, trial: Any, reason: str) -> None:
        """Queue the end of a trial whose point the recipe rejects.

        To samplers it is a pruned trial that breaks a constraint: TPE then avoids its neighbourhood, which it would not
        after a failed one.
        """
        from optuna.trial import TrialState

        def write() -> None:
            self._storage.set_trial_system_attr(_id(trial), REFUSED, reason)
            if _BY_RECIPE not in trial.constraints:
                trial.set_constraint(_BY_RECIPE, 1.0)
            self._storage.set_trial_state_values(_id(trial), TrialState.PRUNED, None)

        self._queue.append(_Write(trial, write, "PRUNED"))

    def flush(self) -> None:
        """Write everything in order. A write that fails stays in the queue, with those behind it.

        Raises:
            UnreachableError: the database does not answer.
            StorageError: it rejects a write, or another process has ended the trial in another state, which is final;
                this write alone is dropped.
            LeaseLostError: another driver has taken the study over; nothing is written.
        """
        self._check()
        if not self._queue:
            return
        with storage_errors(f"Optuna's study {self._study.study_name}"):
            while self._queue:
                try:
                    self._written(self._queue[0])
                except StorageError:
                    self._queue.popleft()
                    raise
                self._queue.popleft()

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
