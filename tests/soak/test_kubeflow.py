"""The pipeline for Kubeflow, compiled and run by kfp itself, its stages on a real cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest
from own_environment import own_environment
from ruamel.yaml import YAML
from shell_user import ROOT
from stub_commands import stub_commands
from sweep_driver import wait_for

pytestmark = pytest.mark.soak

RUN = """
import sys, json
sys.path.insert(0, "kubeflow")
from kfp import local
import pipeline
local.init(local.SubprocessRunner(use_venv=False))
print("RAN", pipeline.train_to_deploy(**json.loads(sys.argv[1])).output)
"""


@pytest.fixture(scope="module")
def kfp(tmp_path_factory):
    """Return the programs of an environment with kfp."""
    return own_environment("kubeflow", "kfp==2.17.3", "kfp-kubernetes", folder=tmp_path_factory.mktemp("environment"))


def test_the_compiled_file_is_what_the_compiler_writes(kfp, tmp_path):
    """From the source beside it, by the command that it names."""
    (tmp_path / "pipeline.py").write_text((ROOT / "deploy/kubeflow/pipeline.py").read_text())
    subprocess.run([kfp / "python", "pipeline.py"], cwd=tmp_path, check=True)
    assert (tmp_path / "pipeline.yaml").read_text() == (ROOT / "deploy/kubeflow/pipeline.yaml").read_text()


def test_a_pods_command_runs_with_what_the_image_has(tmp_path, tmp_path_factory):
    """The compiled one, with kfp's executor and nothing that kfp depends on; jobs and verbs are stubs."""
    requirements = ("--no-deps", "kfp==2.17.3")
    image = own_environment("kubeflow-image", *requirements, folder=tmp_path_factory.mktemp("environment"))
    (tmp_path / "ci").symlink_to(ROOT / "deploy/ci")
    variables = stub_commands(tmp_path)
    variables["PATH"] = f"{image}:{variables['PATH']}"
    compiled = next(YAML(typ="safe").load_all(ROOT / "deploy/kubeflow/pipeline.yaml"))
    container = compiled["deploymentSpec"]["executors"]["exec-train"]["container"]
    given = {
        "inputs": {"parameterValues": {"delivery": "abc", "config": "config.yaml", "overlay": ""}},
        "outputs": {"outputFile": str(tmp_path / "outputs.json")},
    }
    command = [word.replace("{{$}}", json.dumps(given)) for word in (*container["command"], *container["args"])]
    subprocess.run(command, cwd=tmp_path, env=variables, check=True)
    outputs = json.loads((tmp_path / "outputs.json").read_text())["parameterValues"]
    assert outputs == {"version": "3", "run_id": "r1", "digest": "d1"}


@pytest.fixture
def runs(delivered, kfp):
    """Return the function that starts the pipeline of a new project in kfp."""
    user = delivered("kubeflow")
    # The cluster's programs come after kfp's own; in an image they are one environment.
    user.env["PATH"] = f"{kfp}:{user.env['PATH']}"

    def start(**arguments):
        command = [kfp / "python", "-c", RUN, json.dumps({"deploy_options": "", **arguments})]
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        return subprocess.Popen(command, cwd=user.cwd, env=user.env, **pipe)

    start.user = user
    return start


def ran(started):
    """Return the version that a pipeline ended with, None where it failed, and what it printed."""
    said = started.communicate(timeout=900)[0]
    return next((line.split()[1] for line in said.splitlines() if line.startswith("RAN ")), None), said


def test_a_run_that_is_killed_is_gone_on_with_and_none_doubles_anything(cluster, runs):
    """The next run with the same arguments follows the job that still runs, and a third one all that ran."""
    killed = runs(delivery="abc")
    wait_for(lambda: [one for one in cluster.jobs() if one["status"] == "RUNNING"] or None, timeout_s=600)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()

    for known in ("running", "succeeded"):
        version, said = ran(runs(delivery="abc"))
        assert version == "1", said
        assert f"of this delivery is known: {known}" in said
        assert [job["entrypoint"].split()[1] for job in cluster.jobs()] == ["train", "models", "models", "deploy"]
        (live,) = json.loads(runs.user.raymlops("status", "--json").stdout)["desired"]
        assert (live["name"], live["champion"]) == ("late-parcels", 1)
    assert said.count("of this delivery is known: succeeded") == 4
