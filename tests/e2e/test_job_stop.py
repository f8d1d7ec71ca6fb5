"""A job that is stopped writes a last checkpoint, says so, gives its places back, and goes on as another job."""

import json
import time
from pathlib import Path

import pytest
from sweep_driver import wait_for

from raymlops.tracking.client import Tracker, steps_of

pytestmark = [pytest.mark.e2e, pytest.mark.soak]

LONG = ["train.epochs=400", "train.num_workers=2", "train.cpus_per_worker=0.4", "train.checkpoint_every_epochs=400"]
FREE_WITHIN_S = 30


def test_a_stopped_job_goes_on_as_another_one(cluster, cluster_user, monkeypatch):
    """``ray job stop`` in mid-run: KILLED with a checkpoint of that moment, no worker left; resumed by its id alone."""
    user = cluster_user
    user.copy_project()
    before = runs(user)
    for name, value in cluster.mlflow.items():
        monkeypatch.setenv(name, value)
    store = Tracker(cluster.mlflow["MLFLOW_TRACKING_URI"])

    job = ["--", "python", "jobs/train.py"]
    user.run("ray", "job", "submit", "--no-wait", "--submission-id", "long", "--working-dir", ".", *job,
             "--config", "configs/digits.yaml", *LONG)  # fmt: skip
    run_id = wait_for(lambda: next(iter(runs(user) - before), None))
    wait_for(lambda: steps_of(store.run(run_id)).get("train/loss", 0) > 20 or None)
    began = time.monotonic()
    user.run("ray", "job", "stop", "long")
    wait_for(lambda: workers(user) == [] or None)
    assert time.monotonic() - began < FREE_WITHIN_S
    # The driver writes how the run ended after its workers have.
    wait_for(lambda: store.run(run_id).info.status != "RUNNING" or None)
    stopped = json.loads(user.raymlops("status", run_id, "--json").stdout)
    assert stopped["state"] == "killed"
    assert stopped["checkpoint"]["step"] >= stopped["step"] > 20

    more = user.run("ray", "job", "submit", "--working-dir", ".", *job, "--resume", run_id,
                    f"train.epochs={stopped['epoch'] + 1}")  # fmt: skip
    own = [line for line in more.stdout.splitlines() if line.startswith("RAYMLOPS_RESULT ")]
    result = json.loads(own[-1].removeprefix("RAYMLOPS_RESULT "))
    assert result["run_id"] == run_id
    assert store.run(run_id).info.status == "FINISHED"


def runs(user):
    """Return the ids of the runs that have a folder."""
    return {path.parent.name for path in Path(user.env["HOME"], ".raymlops").glob("**/runs/*/log.txt")}


def workers(user):
    return [command for _, command in user.processes() if "TrainWorker" in command]
