"""Rollouts over HTTP with every answer labelled: a trained model against a constant, and the reverse.

The shipped flights and digits, a regression in two units, and a text beside the probabilities of all classes; three
seeds each. Errors and slowness say nothing of a constant: the labels have to. Takes about a quarter of an hour.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from labelled_load import labelled_load
from own_versions import config_in, edited_in, end_serving, make_version

import raymlops as rm
from raymlops.lifecycle.live import remove
from raymlops.lifecycle.overview import follow_rollout

pytestmark = pytest.mark.soak

SOURCE = (Path(__file__).parents[1] / "fixtures" / "judged_worlds.py").read_text()
VARIANTS = {"trained": SOURCE, "constant": SOURCE.replace("CONSTANT = False", "CONSTANT = True")}
WORLDS = {
    "flights": ("Delays", {}, {"epochs": 1, "lr": 0.003, "batch_size": 512}),
    "digits": ("Figures", {"channels": 8}, {"epochs": 4, "lr": 0.01}),
    "price1e5": ("Price", {"unit": 1e5}, {"epochs": 3, "lr": 0.05}),
    "price1e-3": ("Price", {"unit": 1e-3}, {"epochs": 3, "lr": 0.05}),
    "trees": ("Trees", {}, {"epochs": 3, "lr": 0.05}),
}
SEEDS = (0, 1, 2)
ROWS = 400
MAX_WAIT_S = 150.0


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
    name, recipe_config, train = WORLDS[request.param]
    project = tmp_path_factory.mktemp("project")
    model = request.param.replace(".", "-")
    data = config_in(project, name=model, dashboard_url=ray_local.dashboard_url, mlflow_database=mlflow_database)
    rollout = {"error_margin": 0.4, "slow_margin": 0.6, "slow_s": 5.0, "max_wait_s": MAX_WAIT_S}
    data |= {
        "recipe": {"import": f"judged:{name}", "config": recipe_config},
        "train": {**data["train"], **train},
        "serve": {**data["serve"], "rollout": rollout, "traffic": {"canary_timeout_s": 10.0}},
    }
    yield data, {}
    remove(data)


def versions_of(world, folder, seed):
    """Return the trained version and the constant one of a seed, and labelled rows; made once."""
    data, known = world
    if seed not in known:
        seeded = {**data, "train": {**data["train"], "seed": seed}}
        made = {kind: make_version(seeded, folder, text, module="judged") for kind, text in VARIANTS.items()}
        known[seed] = {kind: str(ref.version) for kind, ref in made.items()}
    return data, known[seed]


def labelled_rows(data, seed):
    """Return rows of the test split with their labels, as JSON values."""
    module = importlib.import_module("judged")
    recipe_class = getattr(module, data["recipe"]["import"].partition(":")[2])
    recipe = recipe_class(recipe_class.Config(**data["recipe"]["config"]))
    table = recipe.datasets().test
    chosen = np.random.default_rng(seed).permutation(len(table[recipe.label]))[:ROWS]
    inputs = {column.name: np.asarray(table[column.name])[chosen] for column in recipe.signature().inputs}
    return list(zip(recipe.signature().rows(inputs), np.asarray(table[recipe.label])[chosen].tolist(), strict=True))


def judged(data, champion, canary, rows):
    """Roll a version out at a half of the traffic while every answer is labelled; return how it ended."""
    rm.deploy(data, champion, abort=True)
    record = rm.deploy(data, canary, canary=50, steps=[50], bake_s=10)
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
    ended, questions = judged(data, versions["trained"], versions["constant"], labelled_rows(data, seed))
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
    ended, questions = judged(data, versions["constant"], versions["trained"], labelled_rows(data, seed))
    assert ended.status == "promoted", ended.reason
    assert questions["quality"]["passed"], ended.reason
    assert questions["quality"]["canary"]["value"] < questions["quality"]["champion"]["value"]
    assert (ended.ended_at - ended.started_at).total_seconds() < MAX_WAIT_S
