"""What the job of a retraining is sent, to a dashboard in this process, and how it is found again."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO

import pytest
from fake_jobs import fake_jobs
from retrained import retraining
from ruamel.yaml import YAML
from tiny_bundle import tiny_contents

from raymlops.bundle.write import write_bundle
from raymlops.cluster.jobs import CONFIG, Jobs
from raymlops.config.load import dump, load_data
from raymlops.config.retrain import RetrainSection
from raymlops.lifecycle.loop.next_step import JobFound
from raymlops.lifecycle.loop.stage_jobs import RayJobs, job_spec
from raymlops.state.store import Deployment

HERE = {
    "project": {"name": "another"},
    "recipe": {"import": "another:Recipe"},
    "storage": {"path": "/elsewhere", "state": {"env": "STATE_URL"}},
    "tracking": {"uri": "http://127.0.0.1:5000", "experiment": "others"},
    "cluster": {"address": "10.0.0.1:6379", "dashboard": "http://127.0.0.1:8265"},
}
OWN = {
    "project": {"name": "flights"},
    "recipe": {"import": "tiny:Tiny"},
    "train": {"epochs": 3},
    "gate": {"margin": 0.1},
}


@pytest.fixture
def champion(tmp_path):
    """Return version 3, deployed with another rollout than its configuration has."""
    bundle = write_bundle(tmp_path / "store", tiny_contents(config_yaml=dump(load_data(OWN).spec)))
    serve = {"rollout": {"steps": [20.0, 100.0]}}
    return Deployment("flights", 3, bundle, "run-3", "champion", serve, retrain={"replay_h": 2.0})


@pytest.fixture
def one():
    return retraining(settings=RetrainSection(autonomy="act").model_dump(mode="json"))


@pytest.fixture
def spec():
    return load_data(HERE).spec


def test_a_job_has_the_champions_configuration_on_this_cluster(spec, champion, one, tmp_path):
    """Its recipe, training and gate, as deployed; the state and MLflow of the controller; the champion's storage."""
    sent = job_spec(spec, one, champion)

    assert (sent.project.name, sent.recipe.import_, sent.train.epochs) == ("flights", "tiny:Tiny", 3)
    assert (sent.gate.margin, sent.gate.later_rows) == (0.1, True)
    assert (sent.serve.rollout.steps, sent.retrain.replay_h) == ((20.0, 100.0), 2.0)
    assert sent.storage.path == str(tmp_path / "store")
    assert (sent.storage.state.env, sent.tracking.uri) == ("STATE_URL", "http://127.0.0.1:5000")
    assert sent.experiment == "flights"
    assert (sent.cluster.address, sent.cluster.dashboard) == (None, "http://127.0.0.1:8265")


def test_whoever_wants_no_later_rows_says_so(spec, one, tmp_path):
    """In the champion's configuration: false stays."""
    text = dump(load_data({**OWN, "gate": {"later_rows": False}}).spec)
    bundle = write_bundle(tmp_path, tiny_contents(config_yaml=text))

    assert job_spec(spec, one, Deployment("flights", 3, bundle, "run-3", "champion")).gate.later_rows is False


def test_its_window_takes_the_place_of_the_champions(spec, one, tmp_path):
    """90 days until it was decided; of rows of the log the job makes tables."""
    windowed = {"window": {"start": "2025-01-01", "stop": "2025-02-01"}, "epochs": 3}
    bundle = write_bundle(tmp_path, tiny_contents(config_yaml=dump(load_data({**OWN, "train": windowed}).spec)))
    champion = Deployment("flights", 3, bundle, "run-3", "champion")
    window = job_spec(spec, one, champion).train.window
    assert (window.start, window.stop) == ("2025-10-03T12:00:00+00:00", "2026-01-01T12:00:00+00:00")
    logged = replace(one, settings=RetrainSection(data="log").model_dump(mode="json"))
    assert job_spec(spec, logged, champion).train.window.start is None


def test_it_starts_from_the_champions_weights_where_that_is_asked(spec, champion, one):
    """By the place and digest of its bundle."""
    warm = replace(one, settings=RetrainSection(start="champion").model_dump(mode="json"))

    assert job_spec(spec, one, champion).train.init_from is None
    assert job_spec(spec, warm, champion).train.init_from == f"{champion.bundle.uri}#{champion.bundle.digest}"


def test_a_job_is_sent_once_with_its_code_and_tags(spec, champion, one, tmp_path):
    """The bundle's code, the configuration with the tags of its run, and an id that is derived."""
    with fake_jobs(tmp_path) as ray:
        jobs = RayJobs(spec, jobs=lambda _spec: Jobs(ray.place), tracker=None)
        assert jobs.find("raymlops-retrain-x-train") is None
        jobs.submit("train", "raymlops-retrain-x-train", one, champion)
        assert jobs.find("raymlops-retrain-x-train") == JobFound("succeeded")
        (sent,) = ray.submitted
        (package,) = ray.packages.values()
    assert sent["submission_id"] == "raymlops-retrain-x-train"
    assert f"retraining-job {one.id} train --config {CONFIG} --json" in sent["entrypoint"]
    assert "tiny.py" in package
    config = YAML(typ="safe").load(StringIO(package[CONFIG].decode()))
    assert config["project"]["tags"] == {"raymlops.retraining": one.id, "raymlops.retrain_of": "run-3"}


def test_a_job_that_failed_says_why(spec, champion, one, tmp_path):
    """By the error that its command printed last. A store that is away comes back, and a run in use is free again."""
    failed = dict.fromkeys(("TrainingError", "RecipeError", "RefusedError", "BundleError"), "failed")
    kinds = {**failed, "DataRefusedError": "refused"}
    with fake_jobs(tmp_path) as ray:
        jobs = RayJobs(spec, jobs=lambda _spec: Jobs(ray.place), tracker=None)
        jobs.submit("gate", "raymlops-retrain-x-gate", one, champion)
        ray.states = ["FAILED"]
        for kind, status in kinds.items():
            ray.log = json.dumps({"error": {"type": kind, "message": "the loss is nan"}})
            assert jobs.find("raymlops-retrain-x-gate") == JobFound(status, "the loss is nan")


def test_the_finished_run_is_found_where_the_champions_run_is(mlflow, one):
    """By its tag, whatever the experiment is called; one that runs is none yet."""
    experiment = mlflow.client.create_experiment("flowers")
    tags = {"raymlops.kind": "run", "raymlops.retraining": one.id}
    first = mlflow.client.create_run(experiment, tags={"raymlops.kind": "run"}).info.run_id
    again = replace(one, champion_run_id=first)
    jobs = RayJobs(None, jobs=None, tracker=lambda _spec: mlflow)
    run = mlflow.client.create_run(experiment, tags=tags).info.run_id
    assert jobs.finished_run(again) is None
    mlflow.client.set_terminated(run)
    assert jobs.finished_run(again) == run
