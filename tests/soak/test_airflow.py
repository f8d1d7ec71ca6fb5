"""The provider and the DAGs in a real Airflow, their jobs on a real cluster.

Takes some minutes, of which one installs Airflow unless ``RAYMLOPS_ENVIRONMENTS`` keeps it.
"""

from __future__ import annotations

import json
import shutil

import psutil
import pytest
from cluster_from_up import up
from own_airflow import Airflow, until
from own_environment import own_environment
from shell_user import ROOT, visiting

pytestmark = pytest.mark.soak

DELIVERED = ["train", "models", "models", "deploy"]
DAGS = """
from datetime import timedelta
from airflow.sdk import DAG, TaskGroup
from raymlops_airflow.delivery import PARAMS, delivery
from raymlops_airflow.operators import RayJobOperator, RayJobSensor
with DAG("held", schedule=None):
    RayJobOperator(task_id="held", command="sleep 600", deferrable=False, poll_s=0.5)
with DAG("deferred", schedule=None):
    RayJobOperator(task_id="deferred", command="sleep 601", poll_s=0.5)
with DAG("retried", schedule=None):
    RayJobOperator(
        task_id="retried", command="sleep 602", deferrable=False, poll_s=0.5, retries=1, retry_delay=timedelta(0)
    )
with DAG("impatient", schedule=None):
    RayJobOperator(task_id="impatient", command="sleep 603", poll_s=0.5, patience_s=5.0)
with DAG("limited", schedule=None):
    for task_id, deferrable in {"limited-deferred": True, "limited-held": False}.items():
        limit = timedelta(seconds=40)
        RayJobOperator(
            task_id=task_id, command="sleep 604", deferrable=deferrable, poll_s=0.5, execution_timeout=limit
        )
with DAG("apostrophe", schedule=None):
    RayJobOperator(task_id="apostrophe", command="raymlops train note=it's", retries=3)
with DAG("grouped", schedule=None, params=PARAMS), TaskGroup("parcels"):
    delivery()
with DAG("others", schedule=None):
    RayJobSensor(task_id="waits", job="somebody-elses", poke_interval=0.5)
    RayJobSensor(task_id="pokes", job="somebody-elses", poke_interval=0.5, deferrable=False)
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Return the programs of an environment with Airflow and the provider, which neither Ray nor raymlops is in."""
    folder = tmp_path_factory.mktemp("environment")
    return own_environment("airflow", "apache-airflow==3.3.2", str(ROOT / "deploy/airflow"), folder=folder)


@pytest.fixture(scope="module")
def airflow(programs, cluster, tmp_path_factory):
    """Yield an Airflow that stands."""
    found = Airflow(programs, tmp_path_factory.mktemp("airflow"), cluster, DAGS)
    with found.standing():
        yield found


@pytest.fixture
def project(delivered):
    """Return a user with a new project, and the DAGs' parameter for it, packed as Ray fetches it."""
    user = delivered("airflow")
    file = shutil.make_archive(str(user.cwd.parent / "project"), "zip", user.cwd.parent, user.cwd.name)
    return user, {"working_dir": f"file://{file}"}


@pytest.fixture
def jobs(cluster):
    """Yield the function that returns the jobs of this test, the oldest first; those that still run are stopped."""
    seen = {job["submission_id"] for job in cluster.jobs()}
    yield (found := lambda: [job for job in cluster.jobs() if job["submission_id"] not in seen])
    for job in found():
        cluster.stop(job["submission_id"])


def verbs(jobs):
    return [job["entrypoint"].split()[2] for job in jobs]


def running(jobs, number):
    """Return the job that is the last of so many, once it runs."""

    def last():
        found = jobs()
        return found[-1] if len(found) == number and found[-1]["status"] == "RUNNING" else None

    return until(last)


def test_from_training_to_the_live_model_and_again(airflow, project, jobs):
    """A job for each verb, ids handed on, logs shown; the same run cleared takes what ran."""
    user, given = project
    run = airflow.begin("raymlops_train_to_deploy", **given)
    assert set(airflow.ended(run).values()) == {"success"}
    assert verbs(jobs()) == DELIVERED
    assert "RAYMLOPS_RESULT" in airflow.log(run, "train")
    (live,) = json.loads(user.raymlops("status", "--json").stdout)["desired"]
    assert (live["name"], live["champion"]) == ("late-parcels", 1)

    airflow.clear(run)
    assert set(airflow.ended(run).values()) == {"success"}
    assert "attached to the job" in airflow.log(run, "deploy")
    assert verbs(jobs()) == DELIVERED


def test_a_delivery_stands_in_a_task_group(airflow, project, jobs):
    """Each task finds what the one before it answered, whatever its id begins with."""
    _, given = project
    run = airflow.begin("grouped", **given)
    assert airflow.ended(run) == dict.fromkeys(
        map("parcels.{}".format, ("train", "register", "gate", "deploy")), "success"
    )
    assert verbs(jobs()) == DELIVERED


def test_a_command_without_words_fails_at_once(airflow, jobs):
    """It is not tried again, and nothing is submitted."""
    run = airflow.begin("apostrophe")
    assert airflow.ended(run) == {"apostrophe": "failed"}
    assert airflow.task(run, "apostrophe")["try_number"] == 1
    assert "note=it's - quote an apostrophe" in airflow.log(run, "apostrophe")
    assert jobs() == []


def test_the_loop_by_hand_trains_where_something_moved(airflow, project, jobs):
    """A model of which all is well is left alone; one that nobody asks any more is an alarm, and is delivered anew."""
    _, given = project
    airflow.ended(airflow.begin("raymlops_train_to_deploy", **given))
    well = airflow.ended(airflow.begin("raymlops_loop_by_hand", **given))
    assert (well["alarm"], well["train"], well["deploy"]) == ("success", "skipped", "skipped")
    assert sorted(verbs(jobs()[4:])) == ["drift", "quality"]

    silent = "--config config.yaml monitor.quality.max_silence_h=0.0001"
    airflow.ended(airflow.begin("raymlops_train_to_deploy", source=silent, **given))  # a bound is that of what is live
    moved = airflow.ended(airflow.begin("raymlops_loop_by_hand", source=silent, **given))
    assert set(moved.values()) == {"success"}
    assert sorted(verbs(jobs()[10:12])) == ["drift", "quality"]
    assert verbs(jobs()[12:]) == DELIVERED


@pytest.mark.parametrize("dag", ["held", "deferred"])
def test_a_task_that_is_cleared_stops_its_job(airflow, jobs, dag):
    """Whether a worker follows it or the triggerer; the next attempt has a job of its own, one at a time."""
    run = airflow.begin(dag)
    first = running(jobs, 1)
    until(lambda: airflow.task(run, dag)["state"] == ("deferred" if dag == "deferred" else "running") or None)
    airflow.clear(run)
    second = running(jobs, 2)
    assert second["submission_id"] == f"{first['submission_id']}-2"
    assert jobs()[0]["status"] == "STOPPED"
    assert jobs()[0]["end_time"] <= second["start_time"]


def test_a_job_that_runs_for_too_long_is_stopped(airflow, jobs):
    """By the triggerer and in the worker: none goes on that no task waits for."""
    run = airflow.begin("limited")
    assert airflow.ended(run) == {"limited-deferred": "failed", "limited-held": "failed"}
    assert "ran for longer than execution_timeout, and was stopped" in airflow.log(run, "limited-deferred")
    until(lambda: {job["status"] for job in jobs()} == {"STOPPED"} or None)
    assert len(jobs()) == 2


def test_a_worker_that_is_killed_is_followed_by_one_that_attaches(airflow, cluster, jobs):
    """The job goes on; there is one, until somebody stops it: an earlier attempt may have, so another one is begun."""
    run = airflow.begin("retried")
    job = running(jobs, 1)
    task = airflow.task(run, "retried")
    psutil.Process(task["pid"]).kill()
    until(lambda: "attached to the job" in airflow.log(run, "retried") or None)
    assert airflow.task(run, "retried")["try_number"] == 2
    assert [(one["submission_id"], one["status"]) for one in jobs()] == [(job["submission_id"], "RUNNING")]
    cluster.stop(job["submission_id"])
    cluster.stop(running(jobs, 2)["submission_id"])
    assert airflow.ended(run) == {"retried": "failed"}


def test_the_sensor_waits_for_somebody_elses_job(airflow, cluster_user, jobs):
    """Deferred and in the worker; it says where there is no such job."""
    run = airflow.begin("others")
    assert set(airflow.ended(run).values()) == {"failed"}
    assert "does not know the job somebody-elses" in airflow.log(run, "waits")
    submit = ["ray", "job", "submit", "--no-wait", "--submission-id", "somebody-elses", "--", "sleep", "5"]
    cluster_user.run(*submit)
    assert set(airflow.ended(airflow.begin("others")).values()) == {"success"}
    assert [job["status"] for job in jobs()] == ["SUCCEEDED"]


def test_a_cluster_that_goes_away_fails_the_task_in_words(programs, mlflow_database, tmp_path):
    """While its job runs, and where there is none from the beginning; here without a scheduler."""
    with visiting(tmp_path, mlflow_database) as owner:
        alone = Airflow(programs, tmp_path / "airflow", cluster := up(owner), DAGS)
        with alone.standing():
            run = alone.begin("impatient")
            until(lambda: [one for one in cluster.jobs() if one["status"] == "RUNNING"] or None)
            owner.raymlops("down")
            assert alone.ended(run) == {"impatient": "failed"}
            assert "has not answered for 5 s" in alone.log(run, "impatient")
        code, said = alone.test("impatient")
        assert code == 1
        assert "has not answered for 5 s" in said
