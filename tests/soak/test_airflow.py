"""The provider and the DAGs in a real Airflow, their jobs on a real cluster.

Takes a few minutes, most of them to install Airflow; ``RAYMLOPS_ENVIRONMENTS`` keeps it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from contextlib import contextmanager, suppress

import psutil
import pytest
from cluster_from_up import up
from own_environment import own_environment
from shell_user import ROOT, visiting
from sweep_driver import wait_for

from raymlops.cluster.ports import free_port

pytestmark = pytest.mark.soak

DELIVERED = ["train", "models", "models", "deploy"]
LONG = """
from airflow.sdk import DAG
from raymlops_airflow.operators import RayJobOperator, RayJobSensor
with DAG("held", schedule=None):
    RayJobOperator(task_id="held", command="sleep 600", deferrable=False, poll_s=0.5)
with DAG("deferred", schedule=None):
    RayJobOperator(task_id="deferred", command="sleep 601", poll_s=0.5)
with DAG("impatient", schedule=None):
    RayJobOperator(task_id="impatient", command="sleep 602", poll_s=0.5, patience_s=5.0)
with DAG("others", schedule=None):
    RayJobSensor(task_id="waits", job="somebody-elses", poke_interval=0.5)
    RayJobSensor(task_id="pokes", job="somebody-elses", poke_interval=0.5, deferrable=False)
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Return the programs of an environment with Airflow and the provider, which neither Ray nor raymlops is in."""
    folder = tmp_path_factory.mktemp("environment")
    return own_environment("airflow", "apache-airflow==3.3.2", str(ROOT / "deploy/airflow"), folder=folder)


class Airflow:
    """An Airflow with a home of its own, whose connection ``ray`` is a cluster."""

    def __init__(self, programs, home, cluster):
        port = free_port()
        address = cluster.env["RAY_API_SERVER_ADDRESS"].removeprefix("http://")
        self.airflow, self.home = programs / "airflow", home
        (home / "dags").mkdir(parents=True)
        for file in (ROOT / "deploy/airflow/dags").glob("*.py"):
            shutil.copy(file, home / "dags")
        (home / "dags/long.py").write_text(LONG)
        self.env = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("RAY", "MLFLOW", "PYTHON"))},
            "HOME": str(home),
            "PATH": f"{programs}:{os.environ['PATH']}",
            "AIRFLOW_HOME": str(home),
            "AIRFLOW_CONN_RAY": f"http://:{cluster.token}@{address}",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
        }
        self.run("db", "migrate")

    def start(self, *arguments):
        command, pipe = [self.airflow, *arguments], {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, env=self.env, cwd=self.home, text=True, start_new_session=True, **pipe)

    def run(self, *arguments, code=0):
        process = self.start(*arguments)
        said = process.communicate(timeout=900)[0]
        assert process.returncode == code, said
        return said

    def state(self, dag):
        """Return how the only task of a DAG is."""
        (found,) = json.loads(self.run("dags", "list-runs", dag, "--output", "json"))
        states = json.loads(self.run("tasks", "states-for-dag-run", dag, found["run_id"], "--output", "json"))
        return states[0]["state"]

    def test(self, dag, *, date, code=0, **conf):
        """Run a DAG in one process, without a scheduler."""
        return self.run("dags", "test", dag, date, "--conf", json.dumps(conf), code=code)

    @contextmanager
    def standing(self):
        """Hold the scheduler, the triggerer and all that belongs to them."""
        with (self.home / "standalone.log").open("w") as log:
            process = subprocess.Popen(
                [self.airflow, "standalone"], env=self.env, cwd=self.home, stdout=log, stderr=log
            )
            try:
                yield
            finally:
                below = psutil.Process(process.pid).children(recursive=True)
                process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(30)
                for one in [psutil.Process(process.pid), *below] if process.poll() is None else below:
                    with suppress(psutil.Error):
                        one.kill()


@pytest.fixture
def airflow(programs, cluster, tmp_path):
    return Airflow(programs, tmp_path / "airflow", cluster)


@pytest.fixture
def project(delivered):
    """Return the parameters of the DAGs for a new project, packed as Ray fetches it."""
    user = delivered("airflow")
    file = shutil.make_archive(str(user.cwd.parent / "project"), "zip", user.cwd.parent, user.cwd.name)
    return user, {"working_dir": f"file://{file}"}


def verbs(jobs):
    return [job["entrypoint"].split()[2] for job in jobs]


def new(cluster, seen):
    """Return the jobs beside those that were seen before."""
    return [job for job in cluster.jobs() if job["submission_id"] not in seen]


@pytest.fixture
def jobs(cluster):
    """Yield the function that returns the jobs of this test, the oldest first; those that still run are stopped."""
    seen = {job["submission_id"] for job in cluster.jobs()}
    yield (found := lambda: [job for job in cluster.jobs() if job["submission_id"] not in seen])
    for job in found():
        cluster.stop(job["submission_id"])


def running(jobs, number):
    """Return the job that is the last of so many, once it runs."""

    def last():
        found = jobs()
        return found[-1] if len(found) == number and found[-1]["status"] == "RUNNING" else None

    return wait_for(last)


def test_from_training_to_the_live_model_and_again(airflow, project, jobs):
    """A job for each verb, ids handed on, logs shown; the same run again takes what ran."""
    user, given = project
    said = airflow.test("raymlops_train_to_deploy", date="2026-01-01", **given)
    assert verbs(jobs()) == DELIVERED
    assert "RAYMLOPS_RESULT" in said
    (live,) = json.loads(user.raymlops("status", "--json").stdout)["desired"]
    assert (live["name"], live["champion"]) == ("late-parcels", 1)

    said = airflow.test("raymlops_train_to_deploy", date="2026-01-01", **given)
    assert said.count("attached to the job") == 4
    assert verbs(jobs()) == DELIVERED


def test_the_loop_by_hand_trains_where_something_moved(airflow, project, jobs):
    """A model of which all is well is left alone; one that nobody asks any more is an alarm, and is delivered anew."""
    _, given = project
    airflow.test("raymlops_train_to_deploy", date="2026-01-02", **given)
    airflow.test("raymlops_loop_by_hand", date="2026-01-03", **given)
    assert sorted(verbs(jobs()[4:])) == ["drift", "quality"]

    silent = "--config config.yaml monitor.quality.max_silence_h=0.0001"
    airflow.test("raymlops_loop_by_hand", date="2026-01-04", source=silent, **given)
    assert sorted(verbs(jobs()[6:8])) == ["drift", "quality"]
    assert verbs(jobs()[8:]) == DELIVERED


def test_a_worker_that_is_killed_is_followed_by_one_that_attaches(airflow, jobs):
    """The job goes on; there is one."""
    for attempt in range(2):
        worker = airflow.start("dags", "test", "held", "2026-01-05")
        job = running(jobs, 1)
        if attempt:
            assert any("attached to the job" in line for line in worker.stdout)
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    assert [(one["submission_id"], one["status"]) for one in jobs()] == [(job["submission_id"], "RUNNING")]


@pytest.mark.parametrize("dag", ["held", "deferred"])
def test_a_task_that_is_cleared_stops_its_job(airflow, jobs, dag):
    """By the scheduler, the triggerer and workers of Airflow; the next attempt has a job of its own, one at a time."""
    with airflow.standing():
        wait_for(lambda: dag in airflow.run("dags", "list") or None)
        airflow.run("dags", "unpause", dag)
        airflow.run("dags", "trigger", dag)
        first = running(jobs, 1)
        wait_for(lambda: dag != "deferred" or airflow.state(dag) == "deferred" or None)
        airflow.run("tasks", "clear", "--yes", dag)
        second = running(jobs, 2)
        assert second["submission_id"] == f"{first['submission_id']}-2"
        assert jobs()[0]["status"] == "STOPPED"
        assert jobs()[0]["end_time"] <= second["start_time"]


def test_a_cluster_that_goes_away_fails_the_task_in_words(programs, mlflow_database, tmp_path):
    """While the job runs; and at once where there is none from the beginning."""
    with visiting(tmp_path, mlflow_database) as owner:
        cluster = up(owner)
        airflow = Airflow(programs, tmp_path / "airflow", cluster)
        task = airflow.start("dags", "test", "impatient", "2026-01-06")
        wait_for(lambda: [one for one in cluster.jobs() if one["status"] == "RUNNING"] or None)
        owner.raymlops("down")
        assert "has not answered for 5 s" in task.communicate(timeout=120)[0]
        assert "has not answered for 5 s" in airflow.run("dags", "test", "impatient", "2026-01-07", code=1)


def test_the_sensor_waits_for_somebody_elses_job(airflow, cluster_user, jobs):
    """Deferred and in the worker; it says where there is no such job."""
    assert "does not know the job somebody-elses" in airflow.run("dags", "test", "others", "2026-01-08", code=1)
    submit = ["ray", "job", "submit", "--no-wait", "--submission-id", "somebody-elses", "--", "sleep", "5"]
    cluster_user.run(*submit)
    airflow.run("dags", "test", "others", "2026-01-09")
    assert [job["status"] for job in jobs()] == ["SUCCEEDED"]
