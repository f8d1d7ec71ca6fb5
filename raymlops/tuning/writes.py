"""What a study is still to be told of its trials, in order, and the telling of it, which may be repeated.

Owns how a report and an end are written to Optuna, and what it means when the study has an end already. Knows nothing
of why a trial ended.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.errors import StorageError
from raymlops.tuning.recorded import ATTRIBUTE, attribute
from raymlops.tuning.storage import quiet_optuna, storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raymlops.records import TrialRecord

_STATES = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}


@dataclass(frozen=True)
class _Write:
    """One thing to tell of a trial; telling it twice does no harm."""

    trial: Any
    act: Callable[[], object]
    state: str = ""
    """Of Optuna, that the trial ends in; empty where it does not end."""


class Writes:
    """The queue of writes to one Optuna study."""

    def __init__(self, study: Any) -> None:
        self._study = study
        self._storage = study._storage  # noqa: SLF001 - Optuna's storage interface, which is documented
        self._queue: deque[_Write] = deque()

    def report(self, trial: Any, *, epoch: int, value: float) -> None:
        """Keep a value of an Optuna trial for an epoch. A later one for the same epoch replaces it.

        Optuna's own ``report`` ignores an epoch that a trial went through before it was interrupted.
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
        """Keep the end of an Optuna trial, with the values and constraints that its sampler is to learn from.

        ``study.tell`` would read the whole trial first. What it calls besides, the sampler's ``after_trial``, does
        nothing in TPE, GP and NSGA-II (Optuna 5.0) but call a ``constraints_func``, which ``set_constraint`` replaces.
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
        """Keep that an Optuna trial is to go on later, and how far it came."""
        from optuna.trial import TrialState

        def write() -> None:
            self._storage.set_trial_user_attr(_id(trial), ATTRIBUTE, attribute(record, history))
            self._storage.set_trial_state_values(_id(trial), TrialState.WAITING)

        self._add(trial, write)

    def flush(self) -> None:
        """Write all, in order. What cannot be written stays, with what is behind it.

        Raises:
            UnreachableError: the database does not answer.
            StorageError: it does not take it; or another process has ended a trial otherwise, which is final, so that
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
            # Told before, and the answer was lost? Of a report, the end that follows it decides.
            stored = self._storage.get_trial(_id(write.trial)).state.name
            if write.state and write.state != stored:
                raise StorageError(
                    f"trial {write.trial.number} of Optuna's study {self._study.study_name} was ended by another "
                    f"process: {stored} there, {write.state} here",
                    hint="Let no other process optimize this study: raymlops alone runs its trials.",
                ) from error


def _id(trial: Any) -> int:
    return int(trial._trial_id)  # noqa: SLF001 - the storage interface asks for it, and a trial has no public id
