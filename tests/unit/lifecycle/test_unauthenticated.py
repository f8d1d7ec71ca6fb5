"""Who reaches a Serve, asked of something that answers in the place of a cluster."""

from __future__ import annotations

import pytest
from answering_cluster import answering_cluster

from raymlops.lifecycle.unauthenticated import exposure, finding


def application(name, *, required):
    options = {"name": "front", "user_config": {"access": {"required": required}}}
    return {
        "status": "RUNNING",
        "deployed_app_config": {
            "name": f"{name}--v1",
            "route_prefix": f"/models/{name}",
            "import_path": "raymlops.serving.apps:model_app",
            "args": {"name": name},
            "deployments": [options],
        },
    }


@pytest.fixture
def cluster(tmp_path):
    with answering_cluster() as running:
        running.record(tmp_path)
        applications = {"open--v1": application("open", required=False), "m--v1": application("m", required=True)}
        running.details = {"http_options": {"host": "0.0.0.0", "port": 8000}, "applications": applications}
        yield running


def test_a_model_without_keys_that_others_reach_is_said(cluster, tmp_path):
    """By status and by doctor, with the address and what to do; one that asks for keys is not named."""
    found = exposure(root=str(tmp_path))
    assert found.reach == "0.0.0.0"
    assert found.warning.startswith("open answers without an API key, and Serve listens on 0.0.0.0:8000")
    judged = finding(root=str(tmp_path))
    assert (judged.ok, judged.name, "serve.auth: keys" in judged.fix) == (False, "open models", True)


def test_the_cluster_is_the_one_that_a_configuration_names(cluster, tmp_path, monkeypatch):
    """Whatever runs on this machine."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path / "nothing"))
    data = {"project": {"name": "m"}, "recipe": {"import": "tiny:Tiny"}, "cluster": {"dashboard": cluster.url}}
    assert exposure(data).warning is not None


def test_what_this_machine_alone_reaches_is_not_said(cluster, tmp_path):
    """Nor anything where Serve does not run, or nobody answers."""
    cluster.details["http_options"]["host"] = "127.0.0.1"
    assert exposure(root=str(tmp_path)).warning is None
    assert finding(root=str(tmp_path)) is None
    cluster.details = {"applications": {}}
    assert exposure(root=str(tmp_path)) is None
    assert exposure(root=str(tmp_path / "nothing")) is None
    cluster.record(tmp_path, dashboard_url="http://127.0.0.1:9")  # the discard port: nothing listens
    assert exposure(root=str(tmp_path)) is None
