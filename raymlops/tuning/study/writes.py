"""Deferred writes to the study of a sweep: queued in order, idempotent, repeated until the database answers."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.errors import StorageError
from raymlops.tuning.study.bulk import bulk
from raymlops.tuning.study.records import ATTRIBUTE, REFUSED, STARTED, attribute, report_key
from raymlops.tuning.study.storage import storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raymlops.records import TrialRecord
    from raymlops.tuning.study.records import Report
    from raymlops.tuning.study.view import StudyView


_CONSTRAINT = "constraints:"
"""What Optuna (5.0) puts before the name of a constraint in a trial's system attributes."""
_BY_RECIPE = "accepted by the recipe"
_START_S = 1.0
"""How long the start of a trial may wait for something else to write."""


@dataclass(eq=False)
class _Write:
    """One idempotent write about a trial."""

    trial_id: int
    """Optuna's."""
    act: Callable[[Any], object]
    """Called with Optuna's storage, then with the view of the study."""
    state: str = ""
    """Optuna's state that ends the trial; empty where it does not end."""
    epoch: int | None = None
    """The epoch of a report whose metrics get an attribute of their own."""


class Writes:
    """The queue of pending writes to one Optuna study."""

    def __init__(self, study: Any, *, view: StudyView, check: Callable[[], None] = lambda: None) -> None:
        """Call ``check`` before each flush: it raises where another process may write now."""
        self._study = study
        self._view = view
        self._check = check
        self._storage = study._storage  # noqa: SLF001 - Optuna's storage interface, which is documented
        self._queue: deque[_Write] = deque()
        self._starts: dict[int, float] = {}
        """When trials got a process, by Optuna's id of the trial; not queued yet."""
        self.stored: dict[int, set[int]] = {}
        """Epochs whose reports have an attribute of their own, by Optuna's id of the trial."""

    def start(self, trial_id: int, *, now_s: float) -> None:
        """Record that a trial has a process. That alone is written after a second: a short trial ends before."""
        self._starts[trial_id] = now_s

    def value(self, trial_id: int, *, epoch: int, value: float) -> None:
        """Queue a value of a trial for an epoch. A later one for the same epoch replaces it.

        Optuna's own ``report`` ignores an epoch that the trial reported before it was interrupted.
        """
        self._queue.append(
            _Write(trial_id, lambda storage: storage.set_trial_intermediate_value(trial_id, epoch, float(value)))
        )

    def report(self, trial_id: int, *, epoch: int, report: Report) -> None:
        """Queue the metrics of a trial for an epoch; they are part of its end if that is queued in time."""

        def act(storage: Any) -> None:
            storage.set_trial_system_attr(trial_id, report_key(epoch), report.to_dict())

        self._queue.append(_Write(trial_id, act, epoch=epoch))

    def end(
        self,
        trial_id: int,
        record: TrialRecord,
        state: str,
        *,
        reports: Mapping[int, Report],
        values: Sequence[float] | None = None,
        constraints: Mapping[str, float] | None = None,
        user_attrs: Mapping[str, float] | None = None,
    ) -> None:
        """Queue the end of a trial in ``state``, with the values and constraints for its sampler.

        A trial in the state WAITING is suspended. ``reports`` are all of the trial; those that are not stored yet are
        stored with its end.

        ``study.tell`` would read the whole trial first. It also calls the sampler's ``after_trial``, which in TPE, GP
        and NSGA-II (Optuna 5.0) only calls a ``constraints_func``, which constraints of the trial replace.
        """
        from optuna.trial import TrialState

        stored = self.stored.get(trial_id, set())
        rest = {epoch: report for epoch, report in reports.items() if epoch not in stored}
        history = {epoch: report.metrics for epoch, report in rest.items()}
        orders = {epoch: report.order for epoch, report in rest.items() if report.order is not None}
        kept = attribute(record, history, orders=orders)

        def act(storage: Any) -> None:
            for key, excess in (constraints or {}).items():
                storage.set_trial_system_attr(trial_id, f"{_CONSTRAINT}{key}", excess)
            for name, value in (user_attrs or {}).items():
                storage.set_trial_user_attr(trial_id, name, value)
            storage.set_trial_user_attr(trial_id, ATTRIBUTE, kept)
            storage.set_trial_state_values(trial_id, TrialState[state], values)

        self._starts.pop(trial_id, None)
        # A report that is stored has changed.
        self._queue = deque(one for one in self._queue if one.trial_id != trial_id or one.epoch in {None, *stored})
        self._queue.append(_Write(trial_id, act, "" if state == "WAITING" else state))

    def refuse(self, trial_id: int, reason: str) -> None:
        """Queue the end of a trial whose point the recipe rejects.

        To samplers it is a pruned trial that breaks a constraint: TPE then avoids its neighbourhood, which it would not
        after a failed one.
        """
        from optuna.trial import TrialState

        def act(storage: Any) -> None:
            storage.set_trial_system_attr(trial_id, REFUSED, reason)
            storage.set_trial_system_attr(trial_id, f"{_CONSTRAINT}{_BY_RECIPE}", 1.0)
            storage.set_trial_state_values(trial_id, TrialState.PRUNED, None)

        self._queue.append(_Write(trial_id, act, "PRUNED"))

    def flush(self, *, now_s: float) -> None:
        """Write everything in order, in one transaction. What cannot be written stays in the queue.

        Raises:
            UnreachableError: the database does not answer.
            StorageError: it rejects a write, or another process has ended the trial in another state, which is final;
                this write alone is dropped.
            LeaseLostError: another driver has taken the study over; nothing is written.
        """
        from optuna.exceptions import UpdateFinishedTrialError

        self._check()
        if self._queue or any(now_s - started_s >= _START_S for started_s in self._starts.values()):
            self._queue.extendleft(_Write(trial_id, _started(trial_id)) for trial_id in self._starts)
            self._starts.clear()
        if not self._queue:
            return
        with storage_errors(f"Optuna's study {self._study.study_name}"):
            try:
                with bulk(self._storage) as rows:
                    for write in self._queue:
                        write.act(rows)
            except UpdateFinishedTrialError:
                self._flush_singly()
            while self._queue:
                self._wrote(self._queue.popleft())

    def _flush_singly(self) -> None:
        while self._queue:
            try:
                self._write(self._queue[0])
            except StorageError:
                self._queue.popleft()
                self._view.later(lambda view: view.reload())
                raise
            self._wrote(self._queue.popleft())

    def _write(self, write: _Write) -> None:
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            write.act(self._storage)
        except UpdateFinishedTrialError as error:
            # Written before, and the answer was lost? For a report, the end that follows it decides.
            found = self._storage.get_trial(write.trial_id)
            if write.state and write.state != (stored := found.state.name):
                raise StorageError(
                    f"trial {found.number} of Optuna's study {self._study.study_name} was ended by another "
                    f"process: {stored} there, {write.state} here",
                    hint="Let no other process optimize this study: only raymlops may run its trials.",
                ) from error

    def _wrote(self, write: _Write) -> None:
        self._view.later(write.act)
        if write.epoch is not None:
            self.stored.setdefault(write.trial_id, set()).add(write.epoch)


def _started(trial_id: int) -> Callable[[Any], object]:
    return lambda storage: storage.set_trial_system_attr(trial_id, STARTED, True)
