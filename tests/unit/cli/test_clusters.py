"""``up`` and ``status`` on the command line, at something that answers in the place of a cluster."""

from __future__ import annotations

import json
import os

import pytest
from answering_cluster import answering_cluster
from stored import put

from raymlops.cli.main import main
from raymlops.cluster.processes import ProcessRecord
from raymlops.lifecycle.rollout.actor import LEASE, purpose
from raymlops.records import BundleRef
from raymlops.state.lease import lease
from raymlops.state.store import Deployment, State

WAITING = "1 model should be live: raymlops deploy --restore"


@pytest.fixture
def cluster(tmp_path):
    """Yield a cluster that runs nothing, whose state says that a model should be live."""
    with State.open(f"sqlite:///{tmp_path}/state.db") as state:
        model = Deployment("m", 1, BundleRef("/b", "d" * 64), "run1", "champion", {})
        put(state, "m", [model])
    with answering_cluster() as running:
        running.details = {"data": {"clusterId": "here"}}
        running.record(tmp_path, grpc_port=9000, processes=(ProcessRecord.of("ray", os.getpid()),))
        yield running


@pytest.mark.parametrize("verb", ["up", "status"])
def test_models_that_wait_to_be_restored_are_said(cluster, verb, tmp_path, capsys):
    """Where nothing brought them back, as at a cluster that is none; what is live needs no such remark."""
    assert main([verb, "--root", str(tmp_path)]) == 0
    said = "\n".join(capsys.readouterr()).splitlines()
    assert [line for line in said if line.startswith(WAITING)]
    model = {"name": "m", "version": "1", "path": "/models/m"}
    for listed, hidden in (([model], []), ([], [model])):  # hidden: it asks for a key, and nobody gave one
        cluster.models, cluster.hidden = listed, hidden
        assert main([verb, "--root", str(tmp_path)]) == 0
        printed = "".join(capsys.readouterr())
        assert WAITING not in printed
        assert ("/models/m" in printed) == (verb == "status")


def test_haproxy_is_asked_for_by_its_former_option_too(cluster, tmp_path, capsys):
    """Which names the same proxy, here one that does not run; and not two at once."""
    said = []
    for words in (["--proxy", "haproxy"], ["--haproxy"], ["--haproxy", "--proxy", "python"]):
        assert main(["up", "--root", str(tmp_path), *words]) == 2
        said.append(capsys.readouterr().err)
    assert "already up" in said[0]
    assert said[1] == said[0]
    assert "name different proxies" in said[2]


def test_a_running_controller_brings_the_models_back(cluster, tmp_path, capsys):
    """Nobody has to; where it cannot, it says why."""
    with lease(f"sqlite:///{tmp_path}/state.db", LEASE, purpose=purpose()):
        assert main(["status", "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "--restore" not in out
    assert "the controller brings back what should be live: m\n" in out


def test_a_model_that_others_reach_without_a_key_is_said(cluster, tmp_path, capsys):
    """By status, for a person and for a program, and by doctor, whose exit code it is."""
    application = {
        "name": "m--v1",
        "route_prefix": "/models/m",
        "import_path": "raymlops.serving.apps:model_app",
        "args": {"name": "m"},
        "deployments": [{"name": "front", "user_config": {"access": {"required": False}}}],
    }
    live = {"m--v1": {"status": "RUNNING", "deployed_app_config": application}}
    cluster.details |= {"http_options": {"host": "0.0.0.0", "port": 8000}, "applications": live}
    said = "m answers without an API key, and Serve listens on 0.0.0.0:8000"
    assert main(["status", "--root", str(tmp_path)]) == 0
    assert f"warning: {said}" in capsys.readouterr().out
    assert main(["status", "--root", str(tmp_path), "--json"]) == 0
    assert said in json.loads(capsys.readouterr().out)["exposed"]
    assert main(["doctor", "--root", str(tmp_path)]) == 1
    assert f"FAIL  open models: {said}" in capsys.readouterr().out


def test_status_names_a_cluster_that_up_did_not_start(cluster, tmp_path, monkeypatch, capsys):
    """What runs there by what Serve says, although its endpoint is not here; or that it is down."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path / "here"))
    monkeypatch.setenv("RAYMLOPS_STATE_URL", f"sqlite:///{tmp_path}/state.db")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", cluster.url)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "any")
    application = {
        "name": "m--v1",
        "route_prefix": "/models/m",
        "import_path": "raymlops.serving.apps:model_app",
        "args": {"name": "m", "version": 1},
        "deployments": [{"name": "front", "user_config": {"access": {"required": True}}}],
    }
    running = {"front": {"replicas": [{"state": "RUNNING"}]}}
    live = {"m--v1": {"status": "RUNNING", "deployed_app_config": application, "deployments": running}}
    cluster.details |= {"http_options": {"host": "127.0.0.1", "port": 9}, "applications": live}
    assert main(["status", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["state"], data["root"], data["services"]) == ("up", None, {"ray": True, "serve": True})
    assert data["urls"] == {"ray": cluster.url, "serve": "http://127.0.0.1:9"}
    assert data["models"] == [{"name": "m", "version": "1", "path": "/models/m"}]
    assert [model["name"] for model in data["desired"]] == ["m"]
    assert main(["status"]) == 0
    assert f"up, the cluster of the dashboard {cluster.url}" in capsys.readouterr().out
    cluster.proxy = "UNHEALTHY"
    assert main(["status"]) == 5
    assert capsys.readouterr().out.startswith("broken")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    assert main(["status"]) == 5
    out = capsys.readouterr().out
    assert out.startswith("down")
    assert "does not answer" in out
    assert "version 1" in out  # what should be live is known all the same


def test_status_names_the_address_of_grpc(cluster, tmp_path, capsys):
    """For a person and for a program."""
    assert main(["status", "--root", str(tmp_path)]) == 0
    assert "grpc at 127.0.0.1:9000" in capsys.readouterr().out
    assert main(["status", "--root", str(tmp_path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["state"], data["grpc_address"]) == ("up", "127.0.0.1:9000")


def test_a_damaged_state_hides_nothing_else(cluster, tmp_path, capsys):
    """Services and endpoints are shown; what should be live is unknown, and the remedy is said."""
    for left in tmp_path.glob("state.db-*"):
        left.unlink()
    (tmp_path / "state.db").write_bytes(b"garbage" * 1000)
    cluster.models = [{"name": "m", "version": "1", "path": "/models/m"}]
    assert main(["status", "--root", str(tmp_path)]) == 5
    out = capsys.readouterr().out
    assert "/models/m" in out
    assert "deploy --restore --takeover" in out
    assert main(["status", "--root", str(tmp_path), "--json"]) == 5
    data = json.loads(capsys.readouterr().out)
    assert (data["state"], data["models"], data["desired"]) == ("up", cluster.models, None)
    assert data["error"]["type"] == "StorageError"
