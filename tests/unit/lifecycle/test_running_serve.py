"""Who reaches a Serve, asked of something that answers in the place of a cluster."""

from __future__ import annotations

import pytest
from answering_cluster import answering_cluster

from raymlops.errors import UsageError
from raymlops.lifecycle.running_serve import check_serve, findings, named_cluster
from raymlops.lifecycle.sources import spec_of
from raymlops.serving.control.rest_api import ServeApi


def application(name, *, required):
    options = {"name": "front", "user_config": {"access": {"required": required}}}
    return {
        "status": "RUNNING",
        "deployments": {"front": {"replicas": [{"state": "RUNNING"}]}},
        "deployed_app_config": {
            "name": f"{name}--v1",
            "route_prefix": f"/models/{name}",
            "import_path": "raymlops.serving.apps:model_app",
            "args": {"name": name, "version": 1},
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


def exposed(**where):
    return named_cluster(**where).serve.exposed


def test_a_model_without_keys_that_others_reach_is_said(cluster, tmp_path):
    """By status and by doctor, with the address and what to do; one that asks for keys is not named."""
    found = named_cluster(root=str(tmp_path)).serve
    assert found.reach == "0.0.0.0"
    assert found.exposed.startswith("open answers without an API key, and Serve listens on 0.0.0.0:8000")
    (judged,) = findings(root=str(tmp_path))
    assert (judged.ok, judged.name, "serve.auth: keys" in judged.fix) == (False, "open models", True)


def test_the_cluster_is_the_one_that_a_configuration_names(cluster, tmp_path, monkeypatch):
    """Whatever runs on this machine."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path / "nothing"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "any")
    data = {"project": {"name": "m"}, "recipe": {"import": "tiny:Tiny"}, "cluster": {"dashboard": cluster.url}}
    assert exposed(source=data) is not None


def test_what_this_machine_alone_reaches_is_not_said(cluster, tmp_path):
    """Nor anything where Serve does not run, or nobody answers."""
    cluster.details["http_options"]["host"] = "127.0.0.1"
    assert exposed(root=str(tmp_path)) is None
    assert findings(root=str(tmp_path)) == []
    cluster.details = {"applications": {}}
    assert named_cluster(root=str(tmp_path)).serve is None
    assert findings(root=str(tmp_path)) == []
    assert named_cluster(root=str(tmp_path / "nothing")) is None
    cluster.record(tmp_path, dashboard_url="http://127.0.0.1:9")  # the discard port: nothing listens
    found = named_cluster(root=str(tmp_path))
    assert (found.serve, "does not answer" in found.problem) == (None, True)
    assert findings(root=str(tmp_path)) == []


def test_models_that_run_are_named_without_asking_the_endpoint(cluster, tmp_path):
    """It may not be reached from here."""
    cluster.details["applications"]["m--v1"]["deployments"]["front"]["replicas"] = []
    found = named_cluster(root=str(tmp_path)).serve
    assert found.models() == [{"name": "open", "version": "1", "path": "/models/open"}]


def test_a_cluster_without_the_guard_is_said(cluster, tmp_path):
    """Asked of its proxy, which answers as Serve does; by doctor with the command that starts nodes as they should."""
    cluster.unguarded("127.0.0.1")
    (judged,) = findings(root=str(tmp_path))
    assert "runs without the guard" in judged.message
    assert "raymlops env ray start" in judged.fix


def test_haproxy_is_refused_where_another_proxy_runs(cluster, tmp_path):
    """Before a version is brought up: no deploy can start it."""
    cluster.unguarded("127.0.0.1")
    api = ServeApi(cluster.url, "token")
    data = {"project": {"name": "m"}, "recipe": {"import": "tiny:Tiny"}, "serve": {"proxy": "haproxy"}}
    with pytest.raises(UsageError, match="runs the Python proxy"):
        check_serve(api, spec_of(data))
    _, (lack,) = check_serve(api, spec_of({**data, "serve": {"proxy": "python"}}))
    assert "without the guard" in lack
