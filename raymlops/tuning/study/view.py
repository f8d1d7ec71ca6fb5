"""The trials of a study in memory, from which samplers draw without reading the database.

Owns that a new trial is in the database with all of its parameters, or not at all: it is drawn here first. Knows the
trials that its own process writes; those of other programs only after ``reload``.
"""

from __future__ import annotations

import copy
import json
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from raymlops.tuning.study.bulk import bulk, create_trial
from raymlops.tuning.study.history import History
from raymlops.tuning.study.records import STARTED, repeat_of

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping, Sequence

FIXED = "fixed_params"
"""The system attribute by which Optuna (5.0) knows parameters that are given."""
_DERIVED = ("get_best_trial", "get_trial_param", "get_trial_params", "get_trial_user_attrs")
_DRAFT = -1
"""Optuna's id of a trial that is not in the database yet."""


class StudyView:
    """Stands in for Optuna's storage of one study where its samplers draw.

    What is written about trials stays in memory; everything else goes to the storage. A thread may draw while another
    one writes to the database: what that calls ``later`` with changes nothing before the next draw.
    """

    def __init__(self, study: Any) -> None:
        """Read the trials of a study."""
        self._storage = study._storage  # noqa: SLF001 - Optuna's storage interface, which is documented
        self._study_id = study._study_id  # noqa: SLF001 - its key there
        self._later: list[Callable[[StudyView], object]] = []
        self.reload()

    def __getattr__(self, name: str) -> Any:
        from optuna.storages import BaseStorage

        # What Optuna derives from the trials of a storage: ``study.best_trial`` of a sampler is one that it may see.
        derived = getattr(BaseStorage, name) if name in _DERIVED else None
        return getattr(self._storage, name) if derived is None else derived.__get__(self)

    def reload(self) -> None:
        """Read the trials again, those that other programs have added too."""
        self._later.clear()
        found = self._storage.get_all_trials(self._study_id, deepcopy=False)
        self._trials: dict[int, Any] = {trial._trial_id: trial for trial in found}  # noqa: SLF001
        self.repeats = {trial.number: _blank(trial) for trial in found if repeat_of(trial) is not None}
        searched = (trial for trial in found if trial.number not in self.repeats)
        self.history = History(self._storage.get_study_directions(self._study_id), searched)

    @property
    def trials(self) -> list[Any]:
        """Return all trials, repeats too, in the order of their numbers."""
        return list(self._trials.values())

    def later(self, write: Callable[[StudyView], object]) -> None:
        """Apply what has been written to the database before the next draw."""
        self._later.append(write)

    @contextmanager
    def draft(self, number: int, fixed: Mapping[str, Any] | None) -> Iterator[int]:
        """Yield the id of a new running trial with its ``fixed`` parameters, for as long as it is drawn."""
        from optuna.trial import FrozenTrial, TrialState

        written, self._later = self._later, []
        for write in written:
            write(self)
        self._trials[_DRAFT] = FrozenTrial(
            number=number,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=datetime.now(),  # noqa: DTZ005 - as Optuna's
            datetime_complete=None,
            params={},
            distributions={},
            user_attrs={},
            system_attrs={STARTED: False, **({FIXED: dict(fixed)} if fixed else {})},
            intermediate_values={},
            trial_id=_DRAFT,
        )
        try:
            yield _DRAFT
        finally:
            self._trials.pop(_DRAFT, None)

    def create(self, draft: Any) -> Any:
        """Write a draft (``FrozenTrial``) that was drawn, in one transaction; return the trial.

        Its number is another one where another program has added trials.
        """
        trial_id, number = create_trial(self._storage, self._study_id, draft)
        if number != draft.number:
            self.reload()
            return self._trials[trial_id]
        created = self._trials[trial_id] = copy.copy(draft)
        created._trial_id = trial_id  # noqa: SLF001
        return created

    def store(self, trial_id: int) -> None:
        """Write what was drawn of a trial that is in the database, in one transaction."""
        stored, trial = self._storage.get_trial(trial_id), self._trials[trial_id]
        with bulk(self._storage) as rows:
            for key, value in trial.system_attrs.items():
                if stored.system_attrs.get(key) != value:
                    rows.set_trial_system_attr(trial_id, key, value)
            for name, distribution in trial.distributions.items():
                if name not in stored.distributions:
                    value = distribution.to_internal_repr(trial.params[name])
                    rows.set_trial_param(trial_id, name, value, distribution)

    def get_trial(self, trial_id: int) -> Any:
        """Return a copy of a trial: Optuna's ``Trial`` changes what it gets."""
        trial = copy.copy(self._trials[trial_id])
        trial.params, trial.distributions = dict(trial.params), dict(trial.distributions)
        trial.system_attrs = dict(trial.system_attrs)
        return trial

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        """Return Optuna's own attributes of a trial."""
        attributes: dict[str, Any] = self._trials[trial_id].system_attrs
        return attributes

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Container[Any] | None = None) -> list[Any]:  # noqa: ARG002 - Optuna's signature
        """Return the trials in the order of their numbers, by which samplers index; a repeat teaches them nothing."""
        seen = (self.repeats.get(trial.number, trial) for trial in self._trials.values())
        found = [trial for trial in seen if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def get_n_trials(self, study_id: int, state: Any = None) -> int:
        """Return the number of trials of the search, in a state or a tuple of states where one is given."""
        states = state if state is None or isinstance(state, tuple) else (state,)
        found = self.get_all_trials(study_id, deepcopy=False, states=states)
        return sum(trial.number not in self.repeats for trial in found)

    def set_trial_param(self, trial_id: int, param_name: str, param_value_internal: float, distribution: Any) -> None:
        """Set a parameter."""
        trial = self._changed(trial_id)
        trial.params = {**trial.params, param_name: distribution.to_external_repr(param_value_internal)}
        trial.distributions = {**trial.distributions, param_name: distribution}

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute of Optuna's own, as it would be read from a database."""
        trial = self._changed(trial_id)
        trial.system_attrs = {**trial.system_attrs, key: json.loads(json.dumps(value))}

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a user attribute."""
        trial = self._changed(trial_id)
        trial.user_attrs = {**trial.user_attrs, key: value}

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Set what a trial reported."""
        trial = self._changed(trial_id)
        trial.intermediate_values = {**trial.intermediate_values, step: intermediate_value}

    def set_trial_state_values(self, trial_id: int, state: Any, values: Sequence[float] | None = None) -> bool:
        """Set the state of a trial, and its values."""
        trial = self._changed(trial_id)
        trial.state = state
        if values is not None:
            trial.values = list(values)
        if state.is_finished():
            trial.datetime_complete = datetime.now()  # noqa: DTZ005 - as Optuna's
            if trial.number not in self.repeats:
                self.history.add(trial)
        return True

    def _changed(self, trial_id: int) -> Any:
        trial = self._trials[trial_id] = copy.copy(self._trials[trial_id])
        return trial


def _blank(repeat: Any) -> Any:
    """Return a failed trial without parameters that has a repeat's place among the trials that samplers see."""
    from optuna.trial import TrialState
    from optuna.trial import create_trial as frozen_trial

    blank = frozen_trial(state=TrialState.FAIL)
    blank.number, blank._trial_id = repeat.number, repeat._trial_id  # noqa: SLF001
    return blank
