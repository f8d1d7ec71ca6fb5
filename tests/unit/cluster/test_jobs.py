"""Jobs: the folder that one is given, what it runs, and how it ends."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import pytest
from fake_jobs import fake_jobs

from raymlops.cluster.dashboard import Dashboard
from raymlops.cluster.grace_period import STOP_WAIT_S, VARIABLE
from raymlops.cluster.jobs import CONFIG, SUBMISSION, Jobs, job_folder, last_error, tail
from raymlops.cluster.ports import free_port
from raymlops.config.schema import ProjectSpec
from raymlops.errors import ClusterError, ConfigError, NotFoundError, RaymlopsError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fake_jobs import FakeJobs


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeJobs]:
    """A cluster that takes jobs, in the environment of another one."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    with fake_jobs(tmp_path) as serving:
        yield serving


def test_the_folder_of_a_job_whose_sender_was_killed_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every scratch folder: by the next one that is made."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with job_folder("train: {}", code={}) as folder:
        assert folder.name.startswith("raymlops-scratch-")
        assert folder.with_suffix(".lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_job_runs_raymlops_in_a_copy_of_its_folder(cluster: FakeJobs) -> None:
    """With its own id, and time to end in good order when it is stopped."""
    jobs = Jobs(cluster.place, python="/opt/my venv/bin/python")
    with job_folder("train: {}", code={"my_recipe.py": b"x = 1", "pkg/data.csv": b"1"}) as folder:
        jobs.submit(["sweep", "--config", CONFIG, "--json"], folder=folder, submission_id="s1")
    assert not folder.exists()
    (job,) = cluster.submitted
    assert job["submission_id"] == "s1"
    words = shlex.split(job["entrypoint"])
    assert words[:3] == ["exec", "/opt/my venv/bin/python", "-c"]
    assert words[4:] == ["sweep", "--config", CONFIG, "--json"]
    assert job["runtime_env"]["env_vars"] == {SUBMISSION: "s1", VARIABLE: str(STOP_WAIT_S)}
    (package,) = cluster.packages.values()
    assert package == {CONFIG: b"train: {}", "my_recipe.py": b"x = 1", "pkg/data.csv": b"1"}


def test_a_working_directory_is_sent_as_it_is(cluster: FakeJobs, tmp_path: Path) -> None:
    """Without what it says itself is to stay; its own code counts, and nothing in it is changed."""
    user = tmp_path / "user"
    (user / "data").mkdir(parents=True)
    for name, text in {"data/a.csv": "1", "my_recipe.py": "mine", "big.bin": "0", ".gitignore": "*.bin\n"}.items():
        (user / name).write_text(text)
    code = {"my_recipe.py": b"theirs", "data/b.py": b"", "other.py": b"y = 2"}
    with job_folder("train: {}", code=code, working_dir=user) as folder:
        Jobs(cluster.place).submit(["sweep"], folder=folder, submission_id="s1")
    (package,) = cluster.packages.values()
    assert package == {
        CONFIG: b"train: {}",
        ".gitignore": b"*.bin\n",
        "data/a.csv": b"1",
        "my_recipe.py": b"mine",
        "other.py": b"y = 2",
    }
    assert sorted(path.name for path in user.rglob("*")) == [".gitignore", "a.csv", "big.bin", "data", "my_recipe.py"]


def test_a_stopped_job_is_waited_for(cluster: FakeJobs) -> None:
    """Until Ray says that it has ended; one that has ended already is not asked again."""
    jobs = Jobs(cluster.place)
    with job_folder("", code={}) as folder:
        jobs.submit(["sweep"], folder=folder, submission_id="s1")
    cluster.states = ["RUNNING", "RUNNING", "STOPPED"]
    assert jobs.stop("s1", sleep=lambda _: None).status == "STOPPED"
    assert jobs.stop("s1").ended
    assert cluster.stopped == ["s1"]


def test_what_goes_wrong_is_told_in_our_words(cluster: FakeJobs, tmp_path: Path) -> None:
    """An unknown job, a wrong token, no cluster."""
    with pytest.raises(NotFoundError, match="does not know this job"):
        Jobs(cluster.place).state("nothing")
    (tmp_path / "other").write_text("other")
    with pytest.raises(ClusterError, match="rejects the credentials"):
        Jobs(Dashboard(cluster.place.url, tmp_path / "other")).state("s1")
    with pytest.raises(ClusterError, match="does not answer"):
        Jobs(Dashboard(f"http://127.0.0.1:{free_port()}", cluster.place.token_path)).state("s1")


def test_without_a_cluster_the_way_to_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is started: it would end with this process."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    spec = ProjectSpec.model_validate({"project": {"name": "p"}, "recipe": {"import": "tiny:Tiny"}})
    with pytest.raises(ClusterError, match="no running cluster") as caught:
        Jobs.of(spec)
    assert "`raymlops up`" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"type": "RefusedError", "message": "no", "hint": "wait"}, RefusedError("no", hint="wait")),
        ({"type": "ZeroDivisionError", "message": "no"}, RaymlopsError("ZeroDivisionError: no")),
    ],
)
def test_the_last_error_of_a_log_is_the_one_that_was_raised(error: dict[str, str], expected: RaymlopsError) -> None:
    """Whatever else was printed after it."""
    log = f'{{"metric": 1}}\nwarning\n{json.dumps({"schema_version": 1, "error": error})}\nRay says goodbye\n'
    found = last_error(log)
    assert type(found) is type(expected)
    assert str(found) == str(expected)


def test_the_problems_of_a_configuration_come_back(tmp_path: Path) -> None:
    """Each with its place."""
    problem = {"path": "train.lr", "message": "is negative", "place": "a.yaml:3:5"}
    line = json.dumps({"error": {"type": "ConfigError", "message": "x", "hint": None, "problems": [problem]}})
    error = last_error(line)
    assert isinstance(error, ConfigError)
    assert str(error) == "a.yaml:3:5: train.lr: is negative"


def test_a_log_without_an_error_has_last_words() -> None:
    """The newest fifteen lines."""
    log = "\n".join(map(str, range(40)))
    assert last_error(log) is None
    assert tail(log).splitlines() == [str(number) for number in range(25, 40)]
