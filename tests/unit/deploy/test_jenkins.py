"""The Jenkinsfile: its shell steps in order, and which of its stages have the cluster's token."""

import re
import subprocess
from pathlib import Path

import pytest
from stub_commands import stub_commands

DEPLOY = Path(__file__).parents[3] / "deploy"
TEXT = re.sub(r"(?m)^//.*\n", "", (DEPLOY / "jenkins/Jenkinsfile").read_text())


def stage(name):
    """Return the text of a stage, by the indentation of its end."""
    return re.search(rf"^( *)stage\('{name}'\) \{{\n(.*?)^\1\}}", TEXT, flags=re.DOTALL | re.MULTILINE)[2]


def commands(text):
    """Return the stages of the script that the shell steps run."""
    return [line for line in re.findall(r"sh '(.*)'", text) if "pipeline.sh" in line]


@pytest.fixture
def checkout(tmp_path):
    """Return a checkout with the script; jobs and verbs are stubs."""
    (tmp_path / "ci").symlink_to(DEPLOY / "ci")
    return tmp_path


def test_what_was_trained_is_deployed(checkout):
    """By its number and its digest, with all of the traffic."""
    environment = stub_commands(checkout)
    for command in commands(TEXT):
        subprocess.run(["bash", "-c", command], cwd=checkout, env=environment, check=True, capture_output=True)
    calls = (checkout / "calls").read_text().splitlines()
    assert calls[0] == "validate config.yaml"
    assert calls[-1] == "deploy --config config.yaml --version 3 --digest d1 --yes"
    assert "stash name: 'raymlops-ci'" in stage("Train")
    assert stage("Deploy").index("unstash 'raymlops-ci'") < stage("Deploy").index("pipeline.sh deploy")


def test_the_token_is_in_no_stage_of_a_fork():
    """Nor is it where a fork is validated."""
    assert "credentialsId" not in TEXT.replace(stage("Train"), "").replace(stage("Deploy"), "")
    assert "when { expression { !env.CHANGE_FORK } }" in stage("Train")
    assert "branch 'main'" in stage("Deploy")


def test_the_wait_for_an_answer_takes_no_time_from_the_delivery():
    """It is asked before there is an agent, and only where the branch is deployed; the delivery has its own limit."""
    text = stage("Deploy")
    assert "agent any" not in TEXT.partition("stages {")[0]
    assert text.index("beforeInput true") < text.index("input {") < text.index("steps {")
    assert text.index("steps {") < text.index("timeout(time: 6, unit: 'HOURS') {") < text.index("unstash")
