"""What Optuna's plots are given of a study: a reading of it, made for the figure.

Owns what of a trial a figure may see. One objective where a figure is about one, so that Optuna knows its direction and
draws the best so far; parameters by their short names; failed trials left out; and no user attributes, which Optuna
(5.0) writes into the hover text of each point: whole learning curves, here. Knows nothing of figures.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from raymlops.records import Objective


class Reading(Study):  # type: ignore[misc]  # mypy does not follow Optuna
    """What Optuna's plots ask of a study, answered from memory; they take nothing for one but a subclass."""

    def __init__(
        self, names: Sequence[str], directions: Sequence[StudyDirection], finished: Sequence[FrozenTrial]
    ) -> None:
        self.names = tuple(names)
        self.finished = tuple(finished)
        self._directions = list(directions)

    @property
    def metric_names(self) -> list[str]:
        """Return the names of the objectives."""
        return list(self.names)

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[Any]:  # noqa: ARG002
        """Return the trials in one of ``states``; never copied."""
        return [trial for trial in self.finished if states is None or trial.state in states]

    @property
    def complete(self) -> list[Any]:
        """Return the trials that ran to their end."""
        return self.get_trials(states=(TrialState.COMPLETE,))

    @property
    def params(self) -> list[str]:
        """Return the parameters that any of them has."""
        return sorted({name for trial in self.complete for name in trial.params})

    def only(self, trials: Sequence[FrozenTrial]) -> Reading:
        """Return the same with other trials."""
        return Reading(self.names, self.directions, trials)


def short(name: str) -> str:
    """Return a parameter's name without ``recipe.config.``; one of ``train`` keeps its section."""
    return name.removeprefix("recipe.config.")


def read(study: Any, objectives: Sequence[Objective], *, index: int | None = None) -> Reading:
    """Read the trials that ended with a value; of all objectives, or of the one at ``index``."""
    about = list(range(len(objectives))) if index is None else [index]
    trials = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        values = trial.values
        if values is None:  # stopped before it had reported anything, or stopped where there are several objectives
            continue
        trials.append(
            FrozenTrial(
                number=trial.number,
                state=trial.state,
                value=None,
                values=[values[position] for position in about],
                datetime_start=trial.datetime_start,
                datetime_complete=trial.datetime_complete,
                params={short(name): value for name, value in trial.params.items()},
                distributions={short(name): distribution for name, distribution in trial.distributions.items()},
                user_attrs={},
                system_attrs=trial.system_attrs,  # hold the constraints
                intermediate_values={},
                trial_id=trial._trial_id,  # noqa: SLF001 - importances tell trials apart by it
            )
        )
    directions = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}
    return Reading(
        [objectives[position].metric for position in about],
        [directions[objectives[position].mode] for position in about],
        trials,
    )


def few_of(reading: Reading, at_most: int) -> Reading:
    """Keep the best trial, the worst, and others evenly by rank between them."""
    sign = -1.0 if reading.directions[0] == StudyDirection.MAXIMIZE else 1.0
    ranked = sorted(reading.complete, key=lambda trial: (sign * trial.values[0], trial.number))
    if len(ranked) > at_most:
        ranked = [ranked[round(place * (len(ranked) - 1) / (at_most - 1))] for place in range(at_most)]
    return reading.only(sorted(ranked, key=lambda trial: trial.number))


def counted(reading: Reading) -> Reading:
    """Number the trials from 0 on: Optuna's history (5.0) takes a trial's number for its place in the list."""
    trials = [copy(trial) for trial in reading.finished]
    for place, trial in enumerate(trials):
        trial.number = place
    return reading.only(trials)
