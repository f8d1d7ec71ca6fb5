"""What is live on Kubernetes, on a real Ray: API server and operator are ours, Serve and its replicas are Ray's.

The operator sends a configuration to the real dashboard when KubeRay would, and nobody else does. Takes about a minute.
"""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from canaries import share, take_back
from fake_kubernetes import FakeKubernetes
from serving_bundles import scale_bundle
from states import converge, deploy, opened

from raymlops.cluster.kubernetes.api_server import ApiServer
from raymlops.cluster.ports import free_port
from raymlops.config.serve import ServeSection
from raymlops.lifecycle.live.change import converged
from raymlops.lifecycle.live.reconciler import Reconciler
from raymlops.lifecycle.rollout.canary import TrafficRequest
from raymlops.serving.control.ray_service import RayServiceApi
from raymlops.serving.control.rest_api import ServeApi

pytestmark = pytest.mark.soak


class Dashboard:
    """The real dashboard, as the operator asks it."""

    def __init__(self, api):
        self.api, self.sent = api, 0

    @property
    def live(self):
        return self.api.get()["applications"]

    def get(self):
        return self.api.get()

    def put(self, config):
        self.sent += 1
        self.api.put(config)


def replicas(api):
    """Return the actors of all replicas, by application."""
    return {
        name: sorted(one["actor_id"] for deployment in found["deployments"].values() for one in deployment["replicas"])
        for name, found in api.get()["applications"].items()
        if name != "raymlops"
    }


def settled(state, api):
    """Wait as a verb does, until Serve runs what is desired: it takes a change some time after it was sent."""
    converged(Reconciler(state, api, serve=ServeSection()), lambda: state.deployments("m"), wait_s=60)


def test_deploy_canary_restart_and_rollback(ray_local, tmp_path, monkeypatch):
    """Every change reaches Serve through the RayService alone; a restarted operator restarts no replica."""
    monkeypatch.setattr("states.SERVE", ServeSection(ready_timeout_s=120, port=(port := free_port()), max_replicas=1))
    monkeypatch.setattr("canaries.SERVE", ServeSection(ready_timeout_s=120, port=port, max_replicas=1))
    token = Path(ray_local.token_path).read_text().strip() if ray_local.token_path else None
    real = Dashboard(ServeApi(ray_local.dashboard_url, token))
    kubernetes = FakeKubernetes(real)
    section = ServeSection(ready_timeout_s=120, port=port, max_replicas=1)
    try:
        api = RayServiceApi(
            "flights",
            server=ApiServer(kubernetes.url, "models"),
            token=token,
            dashboard_of=lambda _: ray_local.dashboard_url,
        )
        with opened(tmp_path, "state") as state:
            for version, factor in ((1, 2.0), (2, 3.0)):
                bundle = scale_bundle(tmp_path / f"bundle{version}", factor=factor)
                deploy(state, api, version=version, bundle=bundle, section=section)
                settled(state, api)
            url = f"http://127.0.0.1:{port}/models/m/predict"

            def answers(number):
                rows = {"rows": [{"a": 1.0, "b": 2.0}]}
                got = [httpx.post(url, json=rows, timeout=30) for _ in range(number)]
                assert {one.status_code for one in got} == {200}
                return {one.json()["outputs"][0]["y"] for one in got}

            assert answers(5) == {9.0}
            share(state, api, 1, TrafficRequest(weight=0.5), champion=2)
            settled(state, api)
            assert answers(60) == {6.0, 9.0}
            before, sent, text = replicas(real.api), real.sent, kubernetes.object["spec"]["serveConfigV2"]
            kubernetes.restart_operator()
            assert real.sent == sent + 1
            assert not converge(state, api).acted
            assert (replicas(real.api), kubernetes.object["spec"]["serveConfigV2"]) == (before, text)
            assert answers(60) == {6.0, 9.0}
            take_back(state, api)
            settled(state, api)
            assert answers(20) == {9.0}
            assert kubernetes.owners == {"raymlops"}
            assert [one for one in kubernetes.requests if one[0] not in {"GET", "PATCH"}] == []
    finally:
        kubernetes.close()
