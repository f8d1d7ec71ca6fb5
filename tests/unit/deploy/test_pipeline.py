"""A delivery that is named: whatever was cut off is gone on with, and nothing is submitted twice."""

import subprocess
from pathlib import Path

import pytest
from stub_commands import stub_commands

SCRIPT = Path(__file__).parents[3] / "deploy/ci/pipeline.sh"
DEPLOY = "deploy --config config.yaml --version 3 --digest d1 --yes"
TRAIN = ["train", "models register", "models gate"]


class Project:
    """A checkout, and the cluster that its jobs run on."""

    def __init__(self, folder):
        self.folder, self.env = folder, stub_commands(folder)

    def stage(self, name, *, delivery="abc", **variables):
        done = subprocess.run(
            ["bash", SCRIPT, name, "config.yaml"],
            cwd=self.folder,
            env={**self.env, "DELIVERY": delivery, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    @property
    def calls(self):
        return (self.folder / "calls").read_text().splitlines()

    def job(self, words):
        (found,) = [job for job in (self.folder / "jobs").iterdir() if (job / "words").read_text().startswith(words)]
        return found


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def verbs(calls):
    return [" ".join(call.split()[: 2 if call.startswith("models") else 1]) for call in calls]


def test_the_same_delivery_again_trains_no_second_time(project):
    """Each job is followed to the result that it had; another delivery has jobs of its own."""
    assert project.stage("train")[0] == 0
    (project.folder / "raymlops-ci/version").unlink()
    code, said = project.stage("train")
    assert (code, verbs(project.calls)) == (0, TRAIN), said
    assert said.count("of this delivery is known: succeeded") == 3
    assert (project.folder / "raymlops-ci/version").read_text() == "3@d1\n"
    assert project.stage("train", delivery="def")[0] == 0
    assert verbs(project.calls) == TRAIN * 2


def test_one_that_was_killed_between_two_jobs_goes_on_with_the_next(project):
    """What ran is not run again."""
    (project.folder / "code-models").write_text("5")
    assert project.stage("train")[0] == 5
    (project.folder / "code-models").unlink()
    assert project.stage("train")[0] == 0
    assert verbs(project.calls) == ["train", "models register", *TRAIN[1:]]


@pytest.mark.parametrize(("ends", "code", "trained"), [("SUCCEEDED", 0, 1), ("STOPPED", 0, 2), ("FAILED", 1, 1)])
def test_a_job_that_still_runs_is_followed_to_its_end(project, ends, code, trained):
    """One that is stopped meanwhile was of somebody who was ended: it runs again. One that fails fails the stage."""
    assert project.stage("train")[0] == 0
    first = project.job("raymlops train")
    (first / "status").write_text("RUNNING\n")
    (first / "ends").write_text(f"{ends}\n")
    if ends == "FAILED":
        (first / "log").write_text("killed\n")
    got, said = project.stage("train")
    assert (got, verbs(project.calls).count("train")) == (code, trained), said
    assert "is known: running" in said


@pytest.mark.parametrize("status", ["RUNNING", "SUCCEEDED"])
def test_a_job_that_another_run_submits_in_the_same_moment_is_followed(project, status):
    """Ray refuses the second, which takes the result of the first."""
    assert project.stage("train")[0] == 0
    first = project.job("raymlops train")
    (first / "status").write_text(f"{status}\n")
    (first / "ends").write_text("SUCCEEDED\n")
    (project.folder / "unseen").touch()
    code, said = project.stage("train")
    assert (code, verbs(project.calls)) == (0, TRAIN), said
    assert "already exists" in said
    assert (project.folder / "raymlops-ci/version").read_text() == "3@d1\n"


def test_options_of_a_deployment_are_words_and_name_no_files(project):
    """A star is none of the files beside it."""
    assert project.stage("deploy", MODEL_VERSION="3@d1", DEPLOY_OPTIONS="--why  * --wait")[0] == 0
    assert project.calls == [f"{DEPLOY} --why * --wait"]


def test_without_a_name_every_run_is_a_delivery_of_its_own(project):
    """As a CI that is started again."""
    for _ in range(2):
        assert project.stage("train", delivery="")[0] == 0
    assert verbs(project.calls) == TRAIN * 2


def test_the_exit_code_is_that_of_the_verb_on_a_cluster_too(project):
    """Ray's own command ends with 1 whatever a job ended with."""
    (project.folder / "code-deploy").write_text("4")
    code, said = project.stage("deploy", MODEL_VERSION="3@d1")
    assert (code, project.calls) == (4, [DEPLOY])
    assert "deploy ended with 4" in said


@pytest.mark.parametrize("delivery", ["", "abc"])
def test_a_job_whose_connection_is_lost_is_followed_to_its_end(project, delivery):
    """Ray's own command ends with 0, whatever becomes of the job."""
    (project.folder / "lost").write_text("SUCCEEDED")
    assert project.stage("train", delivery=delivery)[0] == 0
    assert verbs(project.calls) == TRAIN
    assert (project.folder / "raymlops-ci/version").read_text() == "3@d1\n"
    (project.folder / "lost").write_text("FAILED")
    assert project.stage("deploy", delivery=delivery, MODEL_VERSION="3@d1")[0] == 1


@pytest.mark.parametrize("delivery", ["", "abc"])
def test_a_job_whose_cluster_is_gone_is_no_success(project, delivery):
    """It is said, with the exit code of a cluster that is not reached."""
    (project.folder / "lost").write_text("gone")
    code, said = project.stage("deploy", delivery=delivery, MODEL_VERSION="3@d1")
    assert code == 5, said
    assert "http://ray.example:8265 does not answer any more" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("end", ["\n", ""])
def test_what_was_trained_is_deployed_by_its_number_and_its_digest(project, end):
    """A number alone is another model's on a cluster with an MLflow of its own, so it is refused."""
    assert project.stage("train")[0] == 0
    version = project.folder / "raymlops-ci/version"
    version.write_text(version.read_text().rstrip() + end)
    assert project.stage("deploy")[0] == 0
    assert project.calls[3:] == [DEPLOY]
    for bare in ("3", "3@"):
        code, said = project.stage("deploy", MODEL_VERSION=bare)
        assert (code, project.calls[3:]) == (2, [DEPLOY])
        assert "name it as VERSION@DIGEST" in said


def test_a_state_that_does_not_know_the_version_asks_its_gate_first(project):
    """Once: the same delivery again takes what ran. What else is refused is asked of no gate."""
    adopt = "models gate --config config.yaml --version 3 --adopt d1"
    (project.folder / "code-deploy").write_text("4 UnrecordedError")
    for _ in range(2):
        code, said = project.stage("deploy", MODEL_VERSION="3@d1")
        assert (code, project.calls) == (0, [DEPLOY, adopt, DEPLOY]), said
    (project.folder / "code-deploy").write_text("4 UnrecordedError")
    (project.folder / "code-models").write_text("4")
    code, said = project.stage("deploy", MODEL_VERSION="3@d1", delivery="def")
    assert (code, project.calls[3:]) == (4, [DEPLOY, adopt])


def test_a_project_without_tests_is_valid(project):
    """What pytest ends with then is an unreachable cluster in our own table. One that fails fails the stage."""
    code, said = project.stage("validate")
    assert (code, project.calls) == (0, ["validate config.yaml"])
    assert "the project has no test that is 'not soak'" in said
    (project.folder / "test_it.py").write_text("def test_it(): assert False\n")
    assert project.stage("validate")[0] == 1
