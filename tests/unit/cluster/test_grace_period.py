from __future__ import annotations

import pytest

from raymlops.cluster.grace_period import CLOSING_S, STOP_WAIT_S, VARIABLE, shortage, stop_wait_s
from raymlops.config.train import TrainSection

JOB = {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}


def test_only_a_job_is_killed_by_ray():
    """A training in a terminal ends when it likes."""
    assert stop_wait_s({VARIABLE: "30"}) is None
    assert shortage({}, grace_s=1000) is None


@pytest.mark.parametrize("environment", [{}, {VARIABLE: "soon"}])
def test_ray_leaves_three_seconds_unless_told(environment):
    """Its own default."""
    assert stop_wait_s(JOB | environment) == 3


def test_a_cluster_that_kills_too_soon_is_named():
    """With what to do, in numbers that work."""
    said = shortage(JOB, grace_s=40)
    assert "after 3 s, while train.stop_grace_s is 40" in said
    assert f"{VARIABLE}={40 + round(CLOSING_S)}" in said


def test_our_own_clusters_leave_enough_for_the_default():
    """Nobody who changes nothing is warned."""
    assert shortage(JOB | {VARIABLE: str(STOP_WAIT_S)}, grace_s=TrainSection().stop_grace_s) is None
