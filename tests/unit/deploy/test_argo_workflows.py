"""Argo's manifests: what a strict API server says of them, and their commands, run in order."""

from pathlib import Path

import pytest
from argo_steps import StepFailedError, Workflow
from published_schemas import published
from ruamel.yaml import YAML
from stub_commands import stub_commands

FOLDER = Path(__file__).parents[3] / "deploy/argo-workflows"
PIPELINE = Path(__file__).parents[3] / "deploy/ci"
TRAINED = [
    "train --config config.yaml",
    "models register r1 --config config.yaml",
    "models gate --config config.yaml --version 3",
]
DEPLOYED = "deploy --config config.yaml --version 3 --digest d1 --yes"


@pytest.fixture(scope="session")
def schemas():
    return published("argoproj.io_*.yaml")


def read(name):
    return YAML(typ="safe").load(FOLDER / f"{name}.yaml")


@pytest.mark.parametrize("name", ["train-to-deploy", "nightly"])
def test_a_strict_server_takes_it(schemas, name):
    """By the full definitions, unknown fields refused."""
    assert schemas.problems(read(name)) == []


def container(one):
    return one["spec"]["templates"][1]["container"]


MISTAKES = {
    "a field of the workflow": lambda one: one["spec"].update(entryPoint="train"),
    "a field of a step": lambda one: one["spec"]["templates"][0]["steps"][0][0].update(tmpl="train"),
    "a field of a container": lambda one: container(one).update(envfrom=[]),
    "a field of a parameter": lambda one: one["spec"]["arguments"]["parameters"][0].update(values="1"),
    "a command that is text": lambda one: container(one).update(command="bash"),
    "an old version": lambda one: one.update(apiVersion="argoproj.io/v1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_strict_server_sees_mistakes(schemas, mistake):
    """So that the test above means something."""
    one = read("train-to-deploy")
    MISTAKES[mistake](one)
    assert schemas.problems(one)


@pytest.fixture
def workflow(tmp_path):
    """Return a workflow on a checkout with the pipeline's script; jobs and verbs are stubs."""
    environment = stub_commands(tmp_path)
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "ci").symlink_to(PIPELINE)

    def make(name="train-to-deploy", *, uid="uid-1", **parameters):
        return Workflow(FOLDER / f"{name}.yaml", checkout, tmp_path / "pods", environment, uid, parameters)

    make.calls = lambda: (tmp_path / "calls").read_text().splitlines()
    make.folder = tmp_path
    return make


def test_its_commands_train_and_deploy_that_version(workflow):
    """The version goes from one pod to the other; somebody approves in between."""
    one = workflow(delivery="abc")
    one.run()
    assert one.done == ["train", "approve", "deploy"]
    assert workflow.calls() == [*TRAINED, DEPLOYED]


@pytest.mark.parametrize("again", ["retried", "submitted again"])
def test_one_that_was_killed_between_two_steps_doubles_nothing(workflow, again):
    """Whether Argo knows what ended, or all is submitted anew for the same delivery."""
    first = workflow(delivery="abc")
    first.run(until="train")
    assert workflow.calls() == TRAINED
    (first if again == "retried" else workflow(uid="uid-2", delivery="abc")).run()
    assert workflow.calls() == [*TRAINED, DEPLOYED]


def test_what_the_gate_refuses_is_not_deployed(workflow):
    """The step ends as the gate does."""
    (workflow.folder / "code-models").write_text("4")
    with pytest.raises(StepFailedError) as caught:
        workflow(delivery="abc").run()
    assert caught.value.code == 4


def test_a_delivery_has_a_name():
    """Two without one would be one delivery."""
    with pytest.raises(ValueError, match=r"missing ones .'delivery'."):
        Workflow(FOLDER / "train-to-deploy.yaml", Path(), Path(), {})
