"""Train configurations of a sweep again: the best with other seeds, and those of failed trials. Each is a trial.

Owns which repeats are missing in a study. A repeat has its seed and its trial as user attributes, which
optuna-dashboard shows; it counts in no limit of the search, and samplers do not see it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymlops.tuning.study.ranking import candidates, planned
from raymlops.tuning.study.records import REPEAT_OF, RETRY_OF, SEED, added, counted, record_of, repeat_of
from raymlops.tuning.study.storage import storage_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.config.schema import ProjectSpec


def missing_repeats(trials: Sequence[Any], *, spec: ProjectSpec) -> list[tuple[Any, int]]:
    """Return each repeat that a study's trials lack, as the trial to repeat and the seed.

    A repeat that failed is there. Trials that another program added to the study are not repeated: nothing is known of
    how they were trained.
    """
    section = spec.sweep.repeats
    if section.seeds == 1:
        return []
    ended = [trial for trial in counted(trials) if trial.state.is_finished() and not added(trial)]
    records = [record_of(trial, objectives=spec.objectives) for trial in ended]
    best = candidates(records, objective=spec.objectives[0], top=section.top)
    known = {(repeat_of(trial), trial.user_attrs.get(SEED)) for trial in trials}
    by_number = {trial.number: trial for trial in ended}
    return [
        (by_number[record.number], seed)
        for record, seed in planned(best, seeds=section.seeds, first=spec.train.seed)
        if (record.number, seed) not in known
    ]


def repeats_left(trials: Sequence[Any], *, spec: ProjectSpec) -> int:
    """Return how many repeats have not ended, those that a study's trials lack included."""
    if spec.sweep.repeats.seeds == 1:
        return 0
    started = [trial for trial in counted(trials) if repeat_of(trial) is not None and not trial.state.is_finished()]
    return len(started) + len(missing_repeats(trials, spec=spec))


def add_repeats(study: Any, *, spec: ProjectSpec) -> int:
    """Add a waiting trial for each repeat that a study lacks, and return how many; a repeated call adds none.

    Raises:
        StorageError, UnreachableError: the database does not answer.
    """
    from optuna.trial import TrialState, create_trial

    with storage_errors(f"Optuna's study {study.study_name}"):
        found = missing_repeats(study.get_trials(deepcopy=False), spec=spec)
        for trial, seed in found:
            study.add_trial(
                create_trial(
                    state=TrialState.WAITING,
                    system_attrs={"fixed_params": dict(trial.params)},
                    user_attrs={REPEAT_OF: trial.number, SEED: seed},
                )
            )
    return len(found)


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
