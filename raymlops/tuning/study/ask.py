"""Create the trials of a study, draw their parameters, and reopen those of a previous process.

Owns what an open trial is. Knows nothing of how it ends.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raymlops.tuning.search_space import draw, draw_order
from raymlops.tuning.study.records import ATTRIBUTE, history_of, last_value
from raymlops.tuning.study.samplers import sampler_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raymlops.config.space import Scalar
    from raymlops.config.sweep import SweepSection
    from raymlops.records import Objective


@dataclass
class OpenTrial:
    """A trial that has not ended yet."""

    number: int
    params: dict[str, Scalar]
    optuna: Any
    """The Optuna trial; its number is ours."""
    started: float
    value: float | None = None
    """The sweep's metric, of several the first, at the best epoch so far."""
    epochs: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the best epoch so far."""
    history: dict[int, dict[str, float]] = field(default_factory=dict)
    """Metrics by epoch."""
    reported: dict[int, float] = field(default_factory=dict)
    """Value by epoch that the study has or will have at the next flush."""
    before_s: float = 0.0
    """Seconds that it ran in previous processes."""


class TrialFactory:
    """Creates the trials of one study."""

    def __init__(
        self, study: Any, *, section: SweepSection, objectives: Sequence[Objective], clock: Callable[[], float]
    ) -> None:
        self._study = study
        self._section = section
        self._objectives = objectives
        self._order = draw_order(section.space)
        self._clock = clock

    def create(self, point: Mapping[str, Scalar] | None) -> int:
        """Create a running trial with its fixed parameters in one write, and return its id.

        Optuna's own ``ask`` first reads all trials to find a waiting one; here those are reopened once, at a resume.
        """
        from optuna.trial import TrialState, create_trial

        made = None
        if point:
            made = create_trial(state=TrialState.RUNNING, system_attrs={"fixed_params": dict(point)})
        return int(self._study._storage.create_new_trial(self._study._study_id, template_trial=made))  # noqa: SLF001

    def draw(self, trial_id: int, *, number: int) -> OpenTrial:
        """Draw the missing parameters of a trial with the sampler for its number.

        ``number`` is the expected one; it differs where another program has added trials.
        """
        from optuna.trial import Trial

        # A copy has its own cache of ended trials, which is valid for one draw.
        study = copy.copy(self._study)
        study.sampler = sampler_of(self._section, objectives=self._objectives, number=number)
        trial = Trial(study, trial_id)
        if trial.number != number:
            return self.draw(trial_id, number=trial.number)
        params = draw(trial, self._section.space, order=self._order)
        return OpenTrial(number, params, trial, self._clock())

    def reopen(self, trial: Any) -> OpenTrial:
        """Return a trial of a previous process (``FrozenTrial``) with the state that the study has."""
        opened = self.draw(trial._trial_id, number=trial.number)  # noqa: SLF001 - the storage interface's own key
        kept = trial.user_attrs.get(ATTRIBUTE, {})
        opened.reported = dict(trial.intermediate_values)
        opened.history = history_of(trial)
        opened.metrics = {name: value for name, value in kept.get("metrics", {}).items() if value is not None}
        opened.value = last_value(trial)
        if len(self._objectives) > 1:
            opened.value = opened.metrics.get(self._objectives[0].metric)
        opened.epochs = max(kept.get("epochs", 0), trial.last_step or 0)
        opened.before_s = kept.get("duration_s", 0.0)
        return opened
