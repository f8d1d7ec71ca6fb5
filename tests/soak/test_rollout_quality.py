"""Rollouts over HTTP with every answer labelled: a trained model against a constant, and the reverse.

The shipped flights and digits, a regression in two units, and a text beside the probabilities of all classes; three
seeds each. Errors and slowness say nothing of a constant: the labels have to. Takes about a quarter of an hour.
"""

from __future__ import annotations

import sys
import time

import pytest
from judged_versions import WORLDS, configured, labelled_rows, made
from labelled_load import labelled_load
from own_versions import config_in, edited_in, end_serving

import raymlops as rm
from raymlops.cluster.ports import free_port
from raymlops.lifecycle.remove import remove
from raymlops.lifecycle.rollout.follow import follow_rollout

pytestmark = pytest.mark.soak

SEEDS = (0, 1, 2)
MAX_WAIT_S = 150.0
PORT = free_port()
"""Of the one Serve that all models are on."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder on the path, where the recipes' file is written, and end Serve and its controller afterwards."""
    with edited_in(tmp_path_factory.mktemp("judged")) as folder:
        yield folder
    sys.modules.pop("judged", None)
    end_serving()


@pytest.fixture(scope="module", params=WORLDS)
def world(request, folder, ray_local, mlflow_database, tmp_path_factory):
    """Return a project of one recipe, with rows and what is true of them, and take its model down afterwards."""
    project = tmp_path_factory.mktemp("project")
    data = config_in(
        project, name=request.param, dashboard_url=ray_local.dashboard_url, mlflow_database=mlflow_database
    )
    rollout = {"error_margin": 0.4, "slow_margin": 0.6, "slow_s": 5.0, "max_wait_s": MAX_WAIT_S}
    rollout["on_no_verdict"] = "abort"
    data["serve"] |= {"port": PORT, "rollout": rollout, "traffic": {"canary_timeout_s": 10.0}}
    data = configured(data, request.param)
    yield data, {}
    remove(data)


def versions_of(world, folder, seed):
    """Return the configuration, and the versions of a seed, made once."""
    data, known = world
    if seed not in known:
        known[seed] = {kind: str(ref.version) for kind, ref in made(data, folder, seed=seed).items()}
    return data, known[seed]


def judged(data, champion, canary, rows):
    """Roll a version out at a half of the traffic while every answer is labelled; return how it ended."""
    rm.deploy(data, champion, abort=True, again=True)
    record = rm.deploy(data, canary, canary=50, steps=[50], bake_s=10, again=True)
    assert not [warning for warning in record.warnings if "quality" in warning]
    began = time.monotonic()
    with labelled_load(f"http://127.0.0.1:{data['serve']['port']}", data["project"]["name"], rows) as failed:
        ended = follow_rollout(data, record.rollout_id, on_line=lambda line: None)
    assert failed == []
    print(f"\n{data['project']['name']}, {time.monotonic() - began:.0f} s: {ended.status}: {ended.reason}")
    return ended, ended.evidence["numbers"]["questions"]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_constant_is_aborted_by_the_finding_on_quality(world, folder, seed):
    data, versions = versions_of(world, folder, seed)
    ended, questions = judged(data, versions["trained"], versions["constant"], labelled_rows(data, seed=seed))
    assert ended.status == "aborted", ended.reason
    assert {name: found["harmful"] for name, found in questions.items()} == {
        "errors": False,
        "slow": False,
        "quality": True,
    }
    assert "mean loss" in ended.reason
    assert "labelled requests" in ended.reason


@pytest.mark.parametrize("seed", SEEDS)
def test_a_trained_model_is_promoted_with_quality_passed(world, folder, seed):
    data, versions = versions_of(world, folder, seed)
    ended, questions = judged(data, versions["constant"], versions["trained"], labelled_rows(data, seed=seed))
    assert ended.status == "promoted", ended.reason
    assert questions["quality"]["passed"], ended.reason
    assert questions["quality"]["canary"]["value"] < questions["quality"]["champion"]["value"]
    assert (ended.ended_at - ended.started_at).total_seconds() < MAX_WAIT_S
