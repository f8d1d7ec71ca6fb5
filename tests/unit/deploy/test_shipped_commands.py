"""Every command and option of what is shipped for delivery is one that the command line takes."""

import re
import subprocess
from pathlib import Path

import pytest
from command_lines import understood
from stub_commands import stub_commands
from typer.exceptions import TyperException

from raymlops.errors import UsageError

ROOT = Path(__file__).parents[3]
SYSTEMS = ("airflow", "argo-workflows", "ci", "github", "jenkins", "kubeflow")
SHIPPED = [path for system in SYSTEMS for path in sorted((ROOT / "deploy" / system).rglob("*")) if path.is_file()]
TRAFFIC = r"--(?:canary|steps|bake|shadow)\b"


def texts():
    """Return the text of each file that is shipped for delivery, and of the pages about it."""
    files = [path for path in SHIPPED if path.suffix != ".pyc"]
    return {str(path.relative_to(ROOT)): path.read_text() for path in [*files, ROOT / "docs/platforms.md"]}


def deploy_options():
    """Return each list of options for ``deploy`` that is a default, or an example in words, with its file."""
    for name, text in texts().items():
        for found in re.finditer(rf"{TRAFFIC}(?: [\w.,%]+| --[a-z-]+)*", text):
            yield pytest.param(found[0], id=f"{name}:{text[: found.start()].count(chr(10)) + 1}")


@pytest.mark.parametrize("options", list(deploy_options()))
def test_options_of_deploy_are_understood(options, monkeypatch):
    """Alone and together, as somebody copies them."""
    understood(["deploy", "--config", "c", "--version", "3", "--digest", "d", "--yes", *options.split()], monkeypatch)


def test_examples_are_found():
    """So that the test above means something: it knows a mistake, too."""
    named = {found.id.partition(":")[0] for found in deploy_options()}
    assert {"deploy/ci/pipeline.sh", "deploy/github/workflows/raymlops-deploy.yml", "docs/platforms.md"} <= named
    assert any(name.startswith("deploy/airflow/") for name in named)


@pytest.mark.parametrize("options", [["--canary", "10", "--wait"], ["--cannary", "10"], ["--bake", "soon"]])
def test_a_mistake_is_none_that_it_takes(options, monkeypatch):
    """Unknown, of another type, or without what they go with."""
    with pytest.raises((UsageError, TyperException)):
        understood(["deploy", "--config", "c", *options], monkeypatch)


STAGES = {
    "validate": {"validate"},
    "train": {"train", "models"},
    "deploy": {"deploy", "models"},
    "nightly": {"drift", "quality"},
}


@pytest.mark.parametrize("stage", STAGES)
def test_the_verbs_of_each_stage_are_understood(stage, tmp_path, monkeypatch):
    """With what a state that does not know the version is asked."""
    environment = stub_commands(tmp_path)
    (tmp_path / "test_it.py").write_text("def test_it(): pass\n")
    if stage == "deploy":
        (tmp_path / "code-deploy").write_text("4 UnrecordedError")
    variables = {"MODEL_VERSION": "3@d1", "DEPLOY_OPTIONS": "--bake 10m --wait", "ENV_NAME": "prod"}
    subprocess.run(
        ["bash", ROOT / "deploy/ci/pipeline.sh", stage, "config.yaml"],
        cwd=tmp_path,
        env=environment | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    assert {words[0] for words in calls} == STAGES[stage]
    for words in calls:
        understood(words, monkeypatch)


def test_the_verbs_of_airflow_are_understood(monkeypatch):
    """The commands of its tasks, with what templates fill in."""
    text = "\n".join(text for name, text in texts().items() if name.startswith("deploy/airflow/"))
    commands = re.findall(r'verb\("\w+", f?"([^"]+)"', text)
    assert {command.split()[0] for command in commands} == {"train", "models", "deploy", "drift", "quality"}
    model = re.search(r'model = f"([^"]+)"', text)[1]
    for command in commands:
        filled = command.replace("{model}", model).replace("{{{{ params.deploy }}}}", "--bake 10m --wait")
        filled = re.sub(r"\{\{ params.source \}\}|\{source\}", "--config c --env prod a.b=1", filled)
        understood(re.sub(r"\{\w+\}", "3", filled).split(), monkeypatch)


@pytest.mark.parametrize("system", ["github", "jenkins", "kubeflow", "argo-workflows"])
def test_a_first_delivery_asks_for_no_share(system):
    """The options that a new project has give its first version all of the traffic: there is nothing beside it."""
    written = "\n".join(text for name, text in texts().items() if name.startswith(f"deploy/{system}/"))
    defaults = re.findall(
        r'(?:deploy-options: \{.*default: |deploy-options, value: |deploy_options: str = |DEPLOY_OPTIONS=)"(.*?)"',
        written,
    )
    assert set(defaults) == {""}
