"""Trials that are written in bulk to Postgres: what Optuna reads there."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from optuna.trial import create_trial as frozen
from postgres import NEEDS_POSTGRES, postgres

from raymlops.records import Objective
from raymlops.tuning.study.bulk import bulk, create_trial
from raymlops.tuning.study.storage import create_study, load_study, open_storage

pytestmark = [pytest.mark.integration, NEEDS_POSTGRES]

DRAFT = frozen(
    state=TrialState.RUNNING,
    params={"lr": 0.1, "optimizer": "sgd"},
    distributions={"lr": FloatDistribution(0.01, 1, log=True), "optimizer": CategoricalDistribution(["sgd", "adamw"])},
    system_attrs={"fixed_params": {"lr": 0.1}},
)


def test_two_drivers_create_and_end_trials_of_one_study(tmp_path):
    """Each trial has a number of its own, is there whole, and ends once."""
    with postgres(tmp_path) as server:
        url = server.replace("postgresql:", "postgresql+psycopg:")
        with open_storage(url) as opened, ThreadPoolExecutor(2) as drivers:
            study = create_study(opened, "s", objectives=[Objective("loss", "min")])

            def drive(_driver):
                storage = load_study(opened, "s")._storage
                return [create_trial(storage, study._study_id, DRAFT) for _ in range(20)]

            created = sorted(chain.from_iterable(drivers.map(drive, range(2))), key=lambda pair: pair[1])
            assert [number for _, number in created] == list(range(40))
            first, second = (trial_id for trial_id, _ in created[:2])
            for _ in range(2):  # the second time replaces
                with bulk(study._storage) as rows:
                    for step, value in enumerate([0.5, math.nan, math.inf]):
                        rows.set_trial_intermediate_value(second, step, value)
                    rows.set_trial_system_attr(second, "constraints:x", -1.0)
            with bulk(study._storage) as rows:
                rows.set_trial_user_attr(first, "raymlops", {"run_id": "r"})
                rows.set_trial_state_values(first, TrialState.COMPLETE, [0.25])
                rows.set_trial_state_values(second, TrialState.WAITING)
            with pytest.raises(UpdateFinishedTrialError), bulk(study._storage) as rows:
                rows.set_trial_user_attr(first, "raymlops", {})
            trials = load_study(opened, "s").get_trials()
            assert {(trial.params["lr"], trial.params["optimizer"]) for trial in trials} == {(0.1, "sgd")}
            assert all(trial.distributions == DRAFT.distributions for trial in trials)
            assert (trials[0].value, trials[0].user_attrs) == (0.25, {"raymlops": {"run_id": "r"}})
            assert trials[0].datetime_complete >= trials[0].datetime_start
            assert (trials[1].state, trials[1].constraints) == (TrialState.WAITING, {"x": -1.0})
            assert list(trials[1].intermediate_values) == [0, 1, 2]
            assert trials[2].system_attrs == {"fixed_params": {"lr": 0.1}}
