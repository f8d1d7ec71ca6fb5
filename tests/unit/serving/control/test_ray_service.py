from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
from fake_kubernetes import FakeKubernetes
from fake_serve import FakeServe

from raymlops.cluster.kubernetes.api_server import ApiServer
from raymlops.errors import ApiServerAwayError, ClusterError, NotFoundError, RefusedError
from raymlops.serving.control.ray_service import RayServiceApi, serve_api

CONFIG = {"proxy_location": "HeadOnly", "http_options": {"host": "0.0.0.0", "port": 8000}, "applications": []}


@pytest.fixture
def kubernetes():
    fake = FakeKubernetes(FakeServe())
    yield fake
    fake.close()


@pytest.fixture
def api(kubernetes):
    return RayServiceApi(
        "flights", server=ApiServer(kubernetes.url, "models"), token="t", dashboard_of=lambda _: kubernetes.url
    )


def test_one_field_is_written_as_its_manager(kubernetes, api):
    """The rest of the RayService is whose it was, and the same configuration is not written twice."""
    api.put(CONFIG)
    api.put(dict(reversed(CONFIG.items())))
    assert kubernetes.owners == {"raymlops"}
    assert [json.loads(text) for text in kubernetes.patched] == [CONFIG]
    assert kubernetes.object["spec"]["upgradeStrategy"] == {"type": "NewCluster"}
    assert ("PUT", "/api/serve/applications/") not in kubernetes.requests


def test_the_identity_is_the_ray_services(kubernetes, api):
    """Of the pending cluster and the active one alike."""
    before = api.cluster_id()
    kubernetes.object["status"] = {"activeServiceStatus": {"rayClusterName": "flights-b"}}
    assert api.cluster_id() == before == "u" * 8


def test_the_cluster_that_gets_the_configuration_is_asked():
    """The pending one while there is one, which KubeRay alone sends it."""
    fake = FakeKubernetes(FakeServe())
    try:
        api = RayServiceApi("flights", server=ApiServer(fake.url, "models"))
        fake.object["status"]["activeServiceStatus"] = {"rayClusterName": "flights-old"}
        assert api.located() == "http://flights-a-head-svc.models.svc:8265"
        fake.object["status"]["pendingServiceStatus"] = {}
        assert api.located() == "http://flights-old-head-svc.models.svc:8265"
        fake.object["status"] = {"conditions": [{"status": "False", "message": "no quota"}]}
        with pytest.raises(ClusterError, match="no Ray cluster yet: no quota"):
            api.located()
    finally:
        fake.close()


@pytest.mark.parametrize("owners", [{"kubectl-edit"}, {"kubectl-edit", "argocd-controller"}], ids=["one", "two"])
def test_somebody_elses_field_is_not_taken(kubernetes, api, owners):
    """The error names who has it; it is none of a refusal, after which nothing would be done."""
    kubernetes.owners, kubernetes.object["spec"]["serveConfigV2"] = owners, "applications: []"
    with pytest.raises(ClusterError, match="kubectl-edit") as raised:
        api.put(CONFIG)
    assert kubernetes.object["spec"]["serveConfigV2"] == "applications: []"
    assert "apply --server-side --field-manager=raymlops --force-conflicts" in raised.value.message


@pytest.mark.skipif(shutil.which("jq") is None, reason="there is no jq")
def test_the_command_that_takes_the_field_over_gives_it_to_raymlops_alone(kubernetes, api):
    """What is live stays as it is, but for a line end: an equal value would be shared, and each change a conflict."""
    kubernetes.owners, kubernetes.object["spec"]["serveConfigV2"] = {"kubectl-edit"}, '{"applications": []}'
    with pytest.raises(ClusterError) as raised:
        api.put(CONFIG)
    (program,) = re.findall(r"jq '(.*)'", raised.value.message)
    found = json.dumps(kubernetes.object)
    applied = subprocess.run(["jq", program], input=found, capture_output=True, check=True, text=True).stdout
    kubernetes.apply(json.loads(applied), "raymlops", force=True)
    assert kubernetes.object["spec"]["serveConfigV2"] == '{"applications": []}\n'
    assert kubernetes.owners == {"raymlops"}
    api.put(CONFIG)
    assert json.loads(kubernetes.object["spec"]["serveConfigV2"]) == CONFIG


def test_a_write_of_another_in_between_passes(kubernetes, api):
    """It is as if the server had been busy: the same request succeeds later."""
    kubernetes.away = {2: 409}
    with pytest.raises(ApiServerAwayError, match="has been modified"):
        api.put(CONFIG)
    api.put(CONFIG)
    assert [json.loads(text) for text in kubernetes.patched] == [CONFIG]


def test_an_upgrade_is_said(kubernetes):
    """Its new cluster gets every change, and the one that answers gets none, whether or not the new one answers."""
    new = "http://127.0.0.1:1"
    api = RayServiceApi(
        "flights",
        server=ApiServer(kubernetes.url, "models"),
        dashboard_of=lambda name: kubernetes.url if name == "flights-old" else new,
    )
    kubernetes.object["status"]["activeServiceStatus"] = {"rayClusterName": "flights-old"}
    said = "its new cluster flights-a gets every change, and flights-old answers as before"
    with pytest.raises(ClusterError, match=said) as raised:
        api.get()
    assert "pendingServiceStatus" in raised.value.message
    new = kubernetes.url
    assert said in api.get()["upgrade"]
    kubernetes.object["status"]["pendingServiceStatus"] = {}
    assert "upgrade" not in api.get()


def test_a_ray_service_that_was_replaced_is_not_written(kubernetes, api, monkeypatch):
    """Nor made anew out of one field, where it is gone by then."""
    found = json.loads(json.dumps(kubernetes.object))
    monkeypatch.setattr(api, "_read", lambda: found)
    kubernetes.object["metadata"]["uid"] = "another"
    with pytest.raises(RefusedError, match="UID"):
        api.put(CONFIG)
    assert kubernetes.patched == []


def test_an_incremental_upgrade_is_refused(kubernetes, api):
    """With the reason, before anything is written."""
    kubernetes.object["spec"]["upgradeStrategy"] = {"type": "NewClusterWithIncrementalUpgrade"}
    with pytest.raises(RefusedError, match="would get no change while that lasts"):
        api.put(CONFIG)


@pytest.mark.parametrize(
    ("groups", "error", "said"),
    [
        ({}, ClusterError, "this cluster has no KubeRay; KubeRay 1.7 is needed"),
        ({"ray.io": ["v1alpha1"]}, ClusterError, "serves v1alpha1 of ray.io; v1 is needed, of KubeRay 1.7"),
        ({"ray.io": ["v1"]}, NotFoundError, "no RayService flights in the namespace models"),
    ],
    ids=["none", "old", "not applied"],
)
def test_what_is_missing_is_said(kubernetes, api, groups, error, said):
    """KubeRay, a newer one, or the RayService."""
    kubernetes.groups, kubernetes.object = groups, None
    with pytest.raises(error, match=said):
        api.get()


def test_an_account_without_rights_and_a_server_that_is_down():
    """Both are the cluster's."""
    with pytest.raises(ClusterError, match="does not answer"):
        RayServiceApi("flights", server=ApiServer("http://127.0.0.1:1", "models")).get()


def test_outside_of_kubernetes_serve_is_asked_itself(monkeypatch):
    """The environment says which."""
    monkeypatch.delenv("RAYMLOPS_RAYSERVICE", raising=False)
    assert type(serve_api("http://dashboard")).__name__ == "ServeApi"
