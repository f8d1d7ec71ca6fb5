"""Train failed trials again: each gets a new trial with its parameters, which counts in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymlops.tuning.study.records import REPEAT_OF, RETRY_OF, SEED, added, counted
from raymlops.tuning.study.storage import storage_errors

if TYPE_CHECKING:
    from collections.abc import Sequence


def retry_failed(study: Any) -> Sequence[int]:
    """Add a waiting trial for each failed one of a sweep, and return their numbers; a repeated call adds none.

    Optuna's failed trials are final, and its sampler does not learn from them.

    Raises:
        StorageError, UnreachableError: the database does not answer.
    """
    from optuna.trial import TrialState, create_trial

    with storage_errors(f"Optuna's study {study.study_name}"):
        trials = counted(study.get_trials(deepcopy=False))
        failed = [trial for trial in trials if trial.state == TrialState.FAIL and not added(trial)]
        for trial in failed:
            attributes = {"fixed_params": dict(trial.params), RETRY_OF: trial.number}
            own = {key: trial.user_attrs[key] for key in (REPEAT_OF, SEED) if key in trial.user_attrs}
            study.add_trial(create_trial(state=TrialState.WAITING, system_attrs=attributes, user_attrs=own))
    return [trial.number for trial in failed]
