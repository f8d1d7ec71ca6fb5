from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from ruamel.yaml import YAML

from raymlops.cli.app import app
from raymlops.cluster.endpoint.node_environment import node_environment

ROOT = Path(__file__).parents[3]
FILES = [ROOT / "cluster.yaml", *(ROOT / "configs" / "cluster" / f"{name}.yaml" for name in ("gcp", "azure", "local"))]

URL = "postgresql://u:pa$$word@h/db?sslmode=require&target_session_attrs=read-write"
SAYS = """#!{python}
import json, os, sys
json.dump([dict(os.environ), sys.argv[1:]], open(os.environ["HOME"] + "/started", "w"))
"""


def load(path):
    return YAML(typ="safe", pure=True).load(path.read_text())


def node(config, name):
    return config["available_node_types"][name]["node_config"]


def one(path, key, what):
    (command,) = [command for command in load(path)[key] if what in command]
    return command


def run(line, home, variables, *, installed=True):
    """Run a line of a launcher file as Ray does on a node; return what ``ray`` was started with, None if it was not."""
    for folder in (home / "bin", home / "raymlops-venv" / "bin"):  # machines of one's own have the latter
        folder.mkdir(parents=True)
        (folder / "ray").write_text(SAYS.format(python=sys.executable))
        (folder / "ray").chmod(0o700)
        if installed:
            (folder / "raymlops").symlink_to(Path(sys.executable).with_name("raymlops"))
    (home / "node.env").write_text("\n".join(variables))
    (home / "state_url").write_text(URL)
    (home / "node.env").chmod(0o600)
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("token")
    environment = {"HOME": str(home), "PATH": f"{home}/bin:{os.defpath}", "RAY_HEAD_IP": "10.0.0.1"}
    subprocess.run(["bash", "-c", line], env=environment, check=False, capture_output=True, timeout=60)
    started = home / "started"
    if not started.exists():
        return None
    environment, words = json.loads(started.read_text())
    Path(environment["RAY_SERVE_HAPROXY_SERVER_STATE_BASE"]).parent.rmdir()
    return environment, words


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_ray_accepts_the_file(path):
    """Ray's own preparation and schema check, which need no cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(load(path))
    validate_config(config)


@pytest.mark.parametrize("path", [FILES[0], FILES[3]], ids=lambda path: path.stem)
@pytest.mark.parametrize("kind", ["head", "worker"])
def test_every_node_starts_with_the_environment_of_a_node(path, kind, tmp_path):
    """Its line is run as it stands, with a ``ray`` that says what it was started with."""
    line = one(path, f"{kind}_start_ray_commands", "ray start")
    environment, words = run(
        line, tmp_path, ["RAYMLOPS_GCS_STORAGE=redis://cache:6379/a", f"RAYMLOPS_OPTUNA_URL={URL}"]
    )
    wanted = node_environment(
        proxy="haproxy",
        scratch=environment["RAY_SERVE_HAPROXY_SERVER_STATE_BASE"].removesuffix("/h"),
        gcs_storage="redis://cache:6379/a",
        head=kind == "head",
    )
    drawn = ("_MAXCONN", "_PYTHON", "_STATS_PORT", "_METRICS_PORT")  # by what is free there, or of that process
    varying = {name for name in wanted if name.startswith("RAY_SERVE_FALLBACK_PROXY") or name.endswith(drawn)}
    assert {name: environment.get(name) for name in wanted.keys() - varying} == {
        name: wanted[name] for name in wanted.keys() - varying
    }
    assert varying <= environment.keys()
    assert environment["RAYMLOPS_OPTUNA_URL"] == URL
    assert words[:2] == ["start", "--head" if kind == "head" else "--address=10.0.0.1:6379"]


@pytest.mark.parametrize("key", ["head_start_ray_commands", "worker_start_ray_commands", "setup_commands", "docker"])
def test_the_clouds_start_nodes_alike(key):
    """So that one of them stands for all."""
    cloud = {"cluster": "aws"}
    first, *others = (
        json.dumps(load(path)[key]).replace(f"--on-notice {cloud.get(path.stem, path.stem)}", "--on-notice CLOUD")
        for path in FILES[:3]
    )
    assert others == [first, first]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_starts_where_raymlops_is_missing(path, tmp_path):
    """A head without the token would run anyone's code."""
    line = one(path, "head_start_ray_commands", "ray start")
    assert run(line, tmp_path, [], installed=False) is None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_workers_reach_the_dashboard(path):
    """The controller and the drivers of jobs, which run on workers, send Serve's configuration to it."""
    assert "--dashboard-host=0.0.0.0" in one(path, "head_start_ray_commands", "ray start")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_head_brings_back_what_should_be_live(path):
    """By a command that exists, after Ray has been started."""
    commands = load(path)["head_start_ray_commands"]
    words = shlex.split(commands[-1].rpartition("raymlops env")[2])
    assert words == ["--env-file", "~/node.env", "raymlops", "controller", "--restore"]
    verb = typer.main.get_command(app).commands["controller"]
    assert verb.make_context("controller", words[4:]).params["restore"] is True


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_nodes_know_is_on_every_node_and_in_no_file(path):
    """The token and the variables: sent, readable by one user, and not written into a launcher file."""
    config = load(path)
    sent = {str(there).rpartition("/")[2]: here for there, here in config["file_mounts"].items()}
    kept = {"auth_token": "~/.ray/auth_token", "node.env": "~/.raymlops/node.env", "state_url": "~/.raymlops/state_url"}
    assert kept.items() <= sent.items()
    assert any("chmod 600" in line and all(name in line for name in kept) for line in config["setup_commands"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_credentials_of_the_state_stay_on_the_head(path, tmp_path):
    """A worker removes them before Ray starts on it; the head starts what reads them, unless it has none."""
    *before, _ = load(path)["worker_start_ray_commands"]
    (removes,) = [line for line in before if "state_url" in line]
    restores = load(path)["head_start_ray_commands"][-1]
    for name, line, content, started in (
        ("worker", removes, URL, False),
        ("head", restores, URL, True),
        ("stateless", restores, "", False),
    ):
        home = tmp_path / name
        for folder in (home / "bin", home / "raymlops-venv" / "bin"):
            folder.mkdir(parents=True)
            (folder / "raymlops").write_text(SAYS.format(python=sys.executable))
            (folder / "raymlops").chmod(0o700)
        (home / "state_url").write_text(content)
        environment = {"HOME": str(home), "PATH": f"{home}/bin:{os.defpath}"}
        subprocess.run(["bash", "-c", line], env=environment, check=True, timeout=60)
        assert (home / "state_url").exists() == (name != "worker")
        assert (home / "started").exists() == started
    variables, _ = json.loads((tmp_path / "head" / "started").read_text())
    assert variables["RAYMLOPS_STATE_FILE"] == str(tmp_path / "head" / "state_url")
    assert URL not in variables.values()


def test_workers_reach_the_bucket_too():
    """Ray gives a role to the head alone, while everything runs on workers."""
    aws, gcp, azure = (load(path) for path in FILES[:3])
    for name in ("cpu", "gpu", "cpu-spot", "gpu-spot"):
        assert node(aws, name)["IamInstanceProfile"] == {"Name": "raymlops-worker"}
        assert node(gcp, name)["serviceAccounts"][0]["email"]
    assert node(aws, "head")["IamInstanceProfile"] == {"Name": "raymlops-head"}
    assert azure["provider"].keys() >= {"msi_name", "msi_resource_group"}  # one identity of all nodes, which Ray keeps


@pytest.mark.parametrize("gpu", [True, False])
def test_pytorch_comes_without_cuda_where_there_is_no_card(gpu, tmp_path):
    """The line is run as it stands, on a node with and without the driver's own command."""
    for name, says in {"pip": 'echo "$@" > ~/installed', "nvidia-smi": f"exit {0 if gpu else 9}"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{says}\n")
        (tmp_path / name).chmod(0o700)
    line = one(FILES[0], "setup_commands", "pip install")
    subprocess.run(["bash", "-c", line], env={"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.defpath}"}, check=True)
    installed = (tmp_path / "installed").read_text()
    assert "raymlops[recipes,postgres]" in installed
    assert ("download.pytorch.org/whl/cpu" in installed) is not gpu


def test_every_machine_has_an_image_and_a_disk():
    """Ray's default image on AWS is Ubuntu 18.04; the images of Ray's containers alone are several GB."""
    aws, gcp, azure = (load(path) for path in FILES[:3])
    for name in ("head", "cpu", "gpu", "cpu-spot", "gpu-spot"):
        assert node(aws, name)["ImageId"].startswith("resolve:ssm:/aws/service/")
        assert node(aws, name)["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] >= 100
        assert node(gcp, name)["disks"][0]["initializeParams"]["diskSizeGb"] >= 100
        assert node(azure, name)["azure_arm_parameters"]["osDiskSize"] >= 100
    (rule,) = aws["provider"]["security_group"]["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"]) == (8000, 8000)  # how callers reach the endpoint
    assert "0.0.0.0/0" not in str(rule)


def test_the_bill_tells_the_cluster_apart():
    """By one tag of every machine, and of AWS's disks too."""
    aws, gcp, azure = (load(path) for path in FILES[:3])
    for name in aws["available_node_types"]:
        tags = {spec["ResourceType"]: spec["Tags"] for spec in node(aws, name)["TagSpecifications"]}
        assert tags.keys() == {"instance", "volume"}
        assert all(found == [{"Key": "project", "Value": "raymlops"}] for found in tags.values())
        assert node(gcp, name)["labels"] == node(azure, name)["tags"] == {"project": "raymlops"}


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_a_spot_machine_is_the_same_machine_for_less(kind):
    """None is started until somebody says how many; Ray prefers the later name of two types that fit alike."""
    aws, gcp, azure = (load(path) for path in FILES[:3])
    spot = f"{kind}-spot"
    assert node(aws, spot) == {**node(aws, kind), "InstanceMarketOptions": {"MarketType": "spot"}}
    scheduling = {**node(gcp, kind).get("scheduling", {}), "provisioningModel": "SPOT"}
    assert node(gcp, spot)["scheduling"] == {**scheduling, "instanceTerminationAction": "DELETE"}
    own = {"priority": "Spot", "evictionPolicy": "Delete", "billingProfile": {"maxPrice": -1}}
    assert node(azure, spot)["azure_arm_parameters"] == {**node(azure, kind)["azure_arm_parameters"], **own}
    for config in (aws, gcp, azure):
        types = config["available_node_types"]
        same = ("resources", "docker")
        assert [types[spot].get(key) for key in same] == [types[kind].get(key) for key in same]
        assert (types[spot]["min_workers"], types[spot]["max_workers"]) == (0, 0)
        assert spot > kind


@pytest.mark.parametrize("path", FILES[:3], ids=lambda path: path.stem)
def test_workers_wait_for_the_notice_of_their_cloud(path):
    """By a command that exists and outlives the launcher's session, after Ray has been started."""
    line = load(path)["worker_start_ray_commands"][-1]
    words = shlex.split(line.rpartition("raymlops env")[2].partition("<")[0])
    assert words == ["--env-file", "~/node.env", "raymlops", "drain", "--on-notice", load(path)["provider"]["type"]]
    assert line.startswith("setsid nohup ")
    verb = typer.main.get_command(app).commands["drain"]
    assert verb.make_context("drain", words[4:]).params["on_notice"] == words[-1]


@pytest.mark.parametrize("path", FILES[:3], ids=lambda path: path.stem)
def test_the_head_does_no_work(path):
    """Its CPUs are not offered, and it never becomes a worker."""
    config = load(path)
    head = config["available_node_types"][config["head_node_type"]]
    assert (head["resources"]["CPU"], head["max_workers"]) == (0, 0)


def test_the_image_has_the_ray_that_we_pin():
    """Driver and cluster must run the same Ray."""
    import ray

    for path in FILES[:3]:
        config = load(path)
        assert f":{ray.__version__}-py311" in config["docker"]["image"]
