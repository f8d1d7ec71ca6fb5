"""Optuna's TPE on the arrays of a ``StudyView``: the same draws, at a fraction of the cost in long studies.

``tests/unit/tuning/study/test_tpe.py`` compares it with Optuna's own, of which it replaces three private methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optuna.samplers import TPESampler
from optuna.samplers._tpe.sampler import default_gamma
from optuna.search_space import _GroupDecomposedSearchSpace, _SearchSpaceGroup
from optuna.trial import TrialState

if TYPE_CHECKING:
    from raymlops.tuning.study.history import History


class TPE(TPESampler):  # type: ignore[misc]
    """Optuna's TPE sampler. Several objectives, and other storages, it leaves to Optuna's code."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self._group:
            self._group_decomposed_search_space = _Groups(True)

    def _sample(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
        history = _history(study)
        if history is None or study._is_multi_objective():  # noqa: SLF001
            drawn: dict[str, Any] = super()._sample(study, trial, search_space)
            return drawn
        running = []
        if self._constant_liar:
            states = (TrialState.RUNNING,)
            others = study._storage.get_all_trials(study._study_id, deepcopy=False, states=states)  # noqa: SLF001
            running = [(one.number, self._get_params(one, study)) for one in others if one.number != trial.number]
        below, above = history.split((self._gamma or default_gamma)(len(history)))
        good, poor = (
            self._parzen_estimator_cls(observed, search_space, self._parzen_estimator_parameters)
            for observed in (
                history.observed(below, search_space),
                history.observed(above, search_space, more=running),
            )
        )
        candidates = good.sample(self._rng.rng, self._n_ei_candidates)
        best = self._compare(candidates, self._compute_acquisition_func(candidates, good, poor))
        return {name: distribution.to_external_repr(best[name]) for name, distribution in search_space.items()}


class _Groups(_GroupDecomposedSearchSpace):  # type: ignore[misc]
    """The groups of parameters that are in a trial together."""

    def calculate(self, study: Any, use_cache: bool = False) -> Any:
        history = _history(study)
        if history is None:
            return super().calculate(study, use_cache)
        groups = _SearchSpaceGroup()
        for distributions in history.spaces:
            groups.add_distributions(distributions)
        return groups


def _history(study: Any) -> History | None:
    return getattr(study._storage, "history", None)  # noqa: SLF001
