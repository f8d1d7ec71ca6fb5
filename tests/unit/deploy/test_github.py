"""The pipeline that ``raymlops init --ci github`` writes: its shell steps, run in order on a checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from github_steps import project_runner
from ruamel.yaml import YAML
from stub_commands import stub_commands

WORKFLOWS = Path(__file__).parents[3] / "deploy/github/workflows"
SCRIPT = Path(__file__).parents[3] / "deploy/ci/pipeline.sh"


@pytest.fixture
def runner(tmp_path):
    """A runner with a new project and the event of a fork."""
    return project_runner(tmp_path, {"github.event_name": "pull_request"})


@pytest.mark.soak
def test_a_fork_is_validated_only(runner):
    """It has no secret, so no cluster is known; its file and its tests pass as they were written."""
    assert runner.job("raymlops-validate", "validate") == 0
    assert "config.yaml: ok (late-parcels" in runner.log
    assert runner.job("raymlops", "cluster") == 0
    assert runner.outputs == {"known": "false"}
    runner.contexts["secrets.RAY_API_SERVER_ADDRESS"] = "https://ray.example:8265"
    assert runner.job("raymlops", "cluster") == 0
    assert runner.outputs == {"known": "true"}


def test_a_problem_is_an_annotation_of_its_line(runner):
    """The matcher takes file, line, column and message from what ``validate`` prints, for each problem."""
    config = runner.checkout / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 10", "epochs: -1").replace("lr: 0.01", "lrr: 0.01"))
    assert runner.job("raymlops-validate", "validate") == 2
    action = runner.checkout / ".github/actions/raymlops"
    assert f"::add-matcher::{action}/problem-matcher.json" in runner.log.replace("/./", "/")
    pattern = json.loads((action / "problem-matcher.json").read_text())["problemMatcher"][0]["pattern"][0]
    found = [match for line in runner.log.splitlines() if (match := re.match(pattern["regexp"], line))]
    told = {(one[pattern["file"]], one[pattern["line"]], one[pattern["message"]].split(":")[0]) for one in found}
    lines = config.read_text().splitlines()
    epochs, lrr = (1 + next(i for i, line in enumerate(lines) if word in line) for word in ("epochs: -1", "lrr:"))
    assert told == {("config.yaml", str(epochs), "train.epochs"), ("config.yaml", str(lrr), "train.lrr")}


def test_the_report_is_one_comment_however_often_it_is_renewed(runner, tmp_path):
    """And no other workflow's, which comments as the same user: ours is found by what it begins with."""
    stubs = tmp_path / "cluster"
    stubs.mkdir()
    runner.variables["PATH"] = stub_commands(stubs)["PATH"].replace(":", f":{tmp_path}/bin:", 1)
    number = {"github.event.pull_request.number": "7", "github.repository": "me/late"}
    runner.contexts |= {"secrets.RAY_API_SERVER_ADDRESS": "http://ray.example:8265", **number}
    (tmp_path / "comments").write_text("")
    assert runner.job("raymlops-train", "train") == 0, runner.log
    (tmp_path / "comments").write_text("12\n13\n")
    assert runner.job("raymlops-train", "train") == 0, runner.log
    file = "raymlops-ci/comment.md"
    renewed = f"api --silent --method PATCH repos/me/late/issues/comments/12 -F body=@{file}"
    assert (tmp_path / "gh.log").read_text().splitlines() == [f"pr comment 7 --body-file {file}", renewed]
    assert (runner.checkout / file).read_text().startswith("<!-- raymlops train config.yaml  -->\n### late version 3")


def test_a_comment_of_another_workflow_is_not_ours():
    """By the filter that ``gh`` is given."""
    steps = YAML(typ="safe").load(WORKFLOWS / "raymlops-train.yml")["jobs"]["train"]["steps"]
    (variables,) = [step["env"] for step in steps if "OURS" in step.get("env", {})]
    mark, bot = "<!-- raymlops train config.yaml  -->", "github-actions[bot]"
    said = [("coverage: 80%", bot), (f"{mark}\n### late", "somebody"), (f"{mark}\n### late", bot), (f"> {mark}", bot)]
    comments = [{"id": number, "body": body, "user": {"login": user}} for number, (body, user) in enumerate(said)]
    if (jq := shutil.which("jq")) is None:
        pytest.skip("jq is not installed")
    done = subprocess.run(
        [jq, variables["OURS"]],
        input=json.dumps(comments),
        env={"MARK": mark},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "2\n"


def test_nothing_is_deployed_without_a_version_of_this_run(runner):
    """The stage says which one comes before it."""
    assert runner.job("raymlops-deploy", "deploy") == 2
    assert "raymlops-ci/version names no version: run the stage train first" in runner.log


def test_a_wrong_stage_is_named():
    """With those that there are; without a configuration the script says how it is used."""
    wrong, bare = (
        subprocess.run(["bash", SCRIPT, *words], capture_output=True, text=True, check=False)
        for words in (["trian", "config.yaml"], [])
    )
    assert wrong.stderr == "trian is no stage: validate, train, deploy or nightly\n"
    assert (wrong.returncode, bare.returncode) == (2, 2)
    assert "pipeline.sh train CONFIG" in bare.stderr


def test_drift_does_not_keep_the_nightly_run_from_asking_for_quality(tmp_path):
    """Both are asked, by the file and the overlay; the exit code says that one of them found something."""
    (tmp_path / "bin").mkdir()
    stub = tmp_path / "bin/raymlops"
    stub.write_text('#!/bin/sh\necho "$@" >> calls\n[ "$1" != drift ] || exit 6\n')
    stub.chmod(0o755)
    path = os.pathsep.join([str(stub.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    left = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PYTEST_"))}
    done = subprocess.run(
        ["bash", SCRIPT, "nightly", "config.yaml"],
        cwd=tmp_path,
        env={**left, "PATH": path, "ENV_NAME": "prod"},
        check=False,
    )
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[:5] for call in calls] == [
        [verb, "--config", "config.yaml", "--env", "prod"] for verb in ("drift", "quality")
    ]
    assert done.returncode == 6
