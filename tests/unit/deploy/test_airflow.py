"""The parts of Airflow's provider that need no Airflow: what is asked of Ray, and what its answers mean."""

import json
import sys
from itertools import count
from pathlib import Path

import pytest
from fake_jobs import TOKEN, fake_jobs

from raymlops.cluster.ports import free_port

FOLDER = Path(__file__).parents[3] / "deploy/airflow"
sys.path.insert(0, str(FOLDER))

from raymlops_airflow.ray_jobs import (  # noqa: E402 - what users install
    Follower,
    JobFailedError,
    RayJobs,
    RayJobsError,
    check,
    submission_id,
)


@pytest.fixture
def server(tmp_path):
    with fake_jobs(tmp_path) as found:
        yield found


@pytest.fixture
def jobs(server):
    return RayJobs(server.place.url, TOKEN)


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.stem)
def test_every_file_compiles(path):
    """Airflow itself imports them in soak."""
    compile(path.read_text(), str(path), "exec")


def test_an_id_is_of_the_run_the_task_and_what_is_asked_for():
    """The same words give the same id; each other word another one; what a path of a URL may not have is left out."""
    first = submission_id("dag.train", "dag", "manual__1", "train", "raymlops train")
    assert first == submission_id("dag.train", "dag", "manual__1", "train", "raymlops train")
    assert first != submission_id("dag.train", "dag", "manual__2", "train", "raymlops train")
    assert submission_id("a", "b", "c") != submission_id("a", "bc")
    assert submission_id("a/b ü", "x").startswith("a-b-")


def test_a_job_is_submitted_once(server, jobs):
    """With words that no shell takes apart, time to end, and the folder; who asks again is given the same one."""
    assert jobs.start("id", "raymlops train 'a b;c'", working_dir="s3://b/p.zip") == ("id", False)
    server.states = ["RUNNING"]
    assert jobs.start("id", "raymlops train") == ("id", True)
    (sent,) = server.submitted
    assert sent["entrypoint"] == "exec raymlops train 'a b;c'"
    wait = {"RAY_JOB_STOP_WAIT_TIME_S": "30"}
    assert sent["runtime_env"] == {"env_vars": wait, "working_dir": "s3://b/p.zip"}


@pytest.mark.parametrize(("command", "says"), [("raymlops train note=it's", "No closing quotation"), (" ", "is empty")])
def test_a_command_without_words_is_refused_before_it_is_submitted(server, jobs, command, says):
    """It ends alike each time, and is named."""
    with pytest.raises(RayJobsError, match=says) as caught:
        jobs.start("id", command)
    assert caught.value.final
    assert command in str(caught.value)
    assert server.submitted == []


def test_one_that_somebody_submits_in_the_same_moment_is_not_submitted_twice(server, jobs, monkeypatch):
    """Ray refuses the second."""
    assert jobs.start("id", "x") == ("id", False)
    monkeypatch.setattr(RayJobs, "find", lambda self, name: None)
    assert jobs.start("id", "x") == ("id", True)


@pytest.mark.parametrize(("status", "name"), [("SUCCEEDED", "id"), ("FAILED", "id-2"), ("STOPPED", "id-2")])
def test_a_retry_takes_what_ran_and_begins_anew_what_did_not(server, jobs, status, name):
    """A number behind the id says which attempt it is."""
    jobs.start("id", "x")
    server.states = [status]
    assert jobs.start("id", "x") == (name, status == "SUCCEEDED")


def test_lines_are_said_once_and_whole(server, jobs):
    """However the log is cut when it is asked for; the last line without its end too."""
    said = []
    jobs.start("id", "x")
    follower = Follower(jobs, "id", said.append)
    server.states = ["RUNNING"]
    server.log = "one\ntw"
    assert follower.look() is None
    assert said == ["one"]
    server.log, server.states = "one\ntwo\nRAYMLOPS_RESULT {}", ["SUCCEEDED"]
    assert follower.look()["status"] == "SUCCEEDED"
    assert said == ["one", "two", "RAYMLOPS_RESULT {}"]


def ended(status, **more):
    return {"submission_id": "id", "status": status, **more}


def log(**result):
    return f"a line\nRAYMLOPS_RESULT {json.dumps(result)}\n"


def test_what_a_verb_answered_is_the_result():
    """Also where its exit code is an answer, and None where the command is no verb."""
    assert check(ended("SUCCEEDED"), log(run_id="r")) == {"run_id": "r"}
    assert check(ended("SUCCEEDED"), "no verb") is None
    assert check(ended("SUCCEEDED"), 'RAYMLOPS_RESULT {"why": "a\u2028b"}\r\n') == {"why": "a\u2028b"}
    drifted = {"windows": [], "exit_code": 6}
    assert check(ended("FAILED"), log(**drifted), answers=(0, 6)) == drifted


@pytest.mark.parametrize(
    ("job", "text", "final", "words"),
    [
        (ended("FAILED"), log(error={"message": "too bad"}, exit_code=4), True, "exit code 4: too bad"),
        (ended("FAILED"), log(error={"message": "no MLflow"}, exit_code=5), False, "exit code 5: no MLflow"),
        (ended("FAILED", driver_exit_code=137), "last words", False, "exit code 137: last words"),
        (ended("FAILED", message="no such zip"), "", False, "no such zip"),
        (ended("STOPPED"), log(error={"message": "interrupted"}, exit_code=130), False, "is STOPPED"),
    ],
)
def test_a_failure_says_why_and_whether_trying_again_may_help(job, text, final, words):
    """A refusal ends alike each time; a cluster that was away does not."""
    with pytest.raises(JobFailedError, match=words) as caught:
        check(job, text)
    assert caught.value.final is final


def test_a_cluster_that_is_gone_is_given_up_after_a_while(server):
    """It says for how long it was asked; the clock is the test's own."""
    seconds = count()
    slept = []
    gone = RayJobs(
        f"http://127.0.0.1:{free_port()}", patience_s=30, sleep=slept.append, clock=lambda: next(seconds) * 10
    )
    with pytest.raises(RayJobsError, match=r"has not answered for 30 s: .*refused"):
        gone.start("id", "x")
    assert slept == [1, 2]


def test_a_cluster_that_was_started_again_does_not_know_the_job(jobs):
    """That is said at once."""
    with pytest.raises(
        RayJobsError, match="does not know the job id: nobody submitted it, or the cluster was started again"
    ):
        Follower(jobs, "id", print).look()


def test_a_wrong_token_is_said_at_once(server):
    """It would not become right; it is not shown."""
    wrong = RayJobs(server.place.url, "secret-word")
    with pytest.raises(RayJobsError, match="rejects the token") as caught:
        wrong.find("id")
    assert "secret-word" not in f"{caught.value}{wrong}"


def test_stopping_a_job_that_nobody_knows_is_nothing(server, jobs):
    """As one that was killed before it submitted it."""
    jobs.stop("id")
    jobs.start("id", "x")
    jobs.stop("id")
    assert server.stopped == ["id"]
