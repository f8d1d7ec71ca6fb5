"""The compiled pipeline is that of its source; kfp itself compiles and runs it in soak."""

import ast
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

FOLDER = Path(__file__).parents[3] / "deploy/kubeflow"
SOURCE = (FOLDER / "pipeline.py").read_text()


@pytest.fixture(scope="module")
def compiled():
    """Return the compiled pipeline, and what it says of Kubernetes."""
    return tuple(YAML(typ="safe").load_all(FOLDER / "pipeline.yaml"))


def functions():
    """Return the text of each component's function, without what stands above it."""
    found = [node for node in ast.parse(SOURCE).body if isinstance(node, ast.FunctionDef)]
    names = {node.name: ast.unparse(node.decorator_list[0]) for node in found}
    return {node.name: ast.get_source_segment(SOURCE, node) for node in found if "component" in names[node.name]}


def test_each_component_is_what_the_source_says(compiled):
    """Its code, its image, and the names of what it is given."""
    executors = compiled[0]["deploymentSpec"]["executors"]
    assert {name.removeprefix("exec-") for name in executors} == set(functions())
    image = re.search(r'^IMAGE = "(.*)"$', SOURCE, flags=re.MULTILINE)[1]
    for name, text in functions().items():
        container = executors[f"exec-{name}"]["container"]
        assert text in container["command"][-1]
        assert container["image"] == image
        arguments = {one.arg for one in ast.parse(text).body[0].args.args}
        inputs = compiled[0]["components"][f"comp-{name}"]["inputDefinitions"]["parameters"]
        assert set(inputs) == arguments


def test_the_pipeline_hands_ids_on(compiled):
    """The version from one to the other; what it is asked for is the name of the delivery, and where the project is."""
    root = compiled[0]["root"]
    given = root["dag"]["tasks"]["deploy"]["inputs"]["parameters"]
    for key in ("version", "digest"):
        assert given[key]["taskOutputParameter"] == {"outputParameterKey": key, "producerTask": "train"}
    required = {name for name, one in root["inputDefinitions"]["parameters"].items() if not one.get("isOptional")}
    assert required == {"delivery"}


def test_the_token_is_in_a_secret_alone(compiled):
    """Its variables are filled in from there."""
    pods = compiled[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    named = {entry["envVar"] for pod in pods for one in pod["secretAsEnv"] for entry in one["keyToEnv"]}
    assert named == {"RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
    assert {one["secretName"] for pod in pods for one in pod["secretAsEnv"]} == {"raymlops-cluster"}
