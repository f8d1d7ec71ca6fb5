"""What is live on Kubernetes: every step goes through one field of a RayService, and KubeRay sends it.

A real state database, an API server over HTTP whose operator does what KubeRay does, Serve's API in memory.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from canaries import beside, share, take_back
from fake_kubernetes import FakeKubernetes, conflicts
from fake_serve import FakeServe
from states import SERVE, converge, deploy

from raymlops.cluster.kubernetes.api_server import ApiServer
from raymlops.cluster.kubernetes.checks import checked
from raymlops.cluster.kubernetes.ray import ray_service
from raymlops.config.load import load
from raymlops.errors import ClusterError, DeployError
from raymlops.lifecycle.live.change import converged
from raymlops.lifecycle.live.reconciler import Reconciler
from raymlops.lifecycle.live.transitions import unshared
from raymlops.lifecycle.rollout.canary import TrafficRequest
from raymlops.records import BundleRef
from raymlops.serving.control.ray_service import RayServiceApi
from raymlops.state.conditions import EVERYTHING, conditions

ROOT = Path(__file__).parents[4]
TENTH = TrafficRequest(weight=0.1)


class Killed(BaseException):
    """What ends a process between two lines, as far as a test can have it."""


class Api(RayServiceApi):
    """The API of the RayService, whose caller is killed before one of its requests."""

    def __init__(self, kubernetes, *, kill_at=None):
        super().__init__(
            "flights", server=ApiServer(kubernetes.url, "models"), token="t", dashboard_of=lambda _: kubernetes.url
        )
        self.asked, self.kill_at = 0, kill_at
        self.room, self.holders = kubernetes.serve.room, kubernetes.serve.holders
        self.proxy_to_start = kubernetes.serve.proxy_to_start
        server = self._server
        self._server = type(
            "Falling",
            (),
            {
                "namespace": server.namespace,
                "get": staticmethod(lambda path: self.falling(lambda: server.get(path))),
                "apply": staticmethod(lambda *words, **options: self.falling(lambda: server.apply(*words, **options))),
            },
        )()

    def falling(self, request):
        self.asked += 1
        if self.asked - 1 == self.kill_at:
            raise Killed
        return request()


@pytest.fixture
def kubernetes():
    fake = FakeKubernetes(FakeServe(cpus=100.0))
    yield fake
    fake.close()


def runs(kubernetes):
    """Return the share of each version by what Serve runs, and who has the route."""
    live = kubernetes.serve.live
    (holder,) = [name for name, config in live.items() if config["route_prefix"] == "/models/m"]
    traffic = live[holder]["deployments"][0]["user_config"]["traffic"]
    return holder, {one["version"]: one["weight"] for one in traffic["canaries"]}


def unshare(state, version):
    """Desire that a version has no share any more, and do nothing for it."""
    none = TrafficRequest(weight=0.0)
    change = partial(unshared, version=version, goal=none.goal(1), action=none.action, why="a test")
    state.change("m", change, actor="me")


def check(state, kubernetes):
    """Compare what should be live with what the RayService says and with what Serve runs."""
    assert set(kubernetes.serve.live) - {"raymlops"} == {f"m--v{item.version}" for item in state.deployments()}
    text = json.loads(kubernetes.object["spec"]["serveConfigV2"])
    assert {one["name"] for one in text["applications"]} == set(kubernetes.serve.live)
    assert kubernetes.owners == {"raymlops"}
    assert not [path for method, path in kubernetes.requests if method not in {"GET", "PATCH"}]


def test_deploy_canary_and_rollback(state, kubernetes):
    """As everywhere: the pending cluster becomes the active one on the way, which changes nothing."""
    api = Api(kubernetes)
    deploy(state, api)
    assert "activeServiceStatus" in kubernetes.object["status"]
    beside(state, api, 2)
    share(state, api, 2, TENTH)
    converge(state, api)
    assert runs(kubernetes) == ("m--v1", {2: 0.1})
    check(state, kubernetes)
    take_back(state, api)
    converge(state, api)
    assert runs(kubernetes) == ("m--v1", {})
    check(state, kubernetes)


def test_a_restart_of_the_operator_in_the_middle_of_a_canary_changes_nothing(state, kubernetes):
    """It sends once more what it sent last."""
    api = Api(kubernetes)
    deploy(state, api)
    share(state, api, 2, TENTH)
    converge(state, api)
    before = kubernetes.serve.live, list(kubernetes.serve.started), len(kubernetes.patched)
    kubernetes.restart_operator()
    assert not converge(state, api).acted
    assert (kubernetes.serve.live, kubernetes.serve.started, len(kubernetes.patched)) == before
    assert runs(kubernetes) == ("m--v1", {2: 0.1})


def test_manifests_that_are_applied_again_in_the_middle_of_a_canary_change_nothing(state, kubernetes):
    """They have no word of what is live; nor is anything sent to Serve."""
    api = Api(kubernetes)
    spec = load(ROOT / "configs" / "flights.yaml", env="prod").spec
    manifest = ray_service(checked(spec, env="prod", release="1"), ray_version="2.60.0")
    kubernetes.apply(manifest, "kubectl")
    deploy(state, api)
    share(state, api, 2, TENTH)
    converge(state, api)
    before, sent = kubernetes.serve.live, len(kubernetes.serve.sent)
    version = kubernetes.object["metadata"]["resourceVersion"]
    kubernetes.apply(manifest, "kubectl")
    assert not converge(state, api).acted
    assert (kubernetes.serve.live, len(kubernetes.serve.sent)) == (before, sent)
    assert kubernetes.object["metadata"]["resourceVersion"] == version
    assert runs(kubernetes) == ("m--v1", {2: 0.1})


@pytest.mark.parametrize("said", ["the object has been modified", conflicts({"argocd-controller"})])
def test_a_conflict_is_waited_for(state, kubernetes, monkeypatch, said):
    """What is desired stays so, and a refusal would say that nothing was changed."""
    api = Api(kubernetes)
    deploy(state, api)
    real, first = kubernetes.apply, []

    def apply(body, manager, **options):
        if first:
            return real(body, manager, **options)
        first.append(body)
        return 409, said

    monkeypatch.setattr(kubernetes, "apply", apply)
    share(state, api, 2, TENTH)
    converge(state, api)
    assert first
    assert runs(kubernetes) == ("m--v1", {2: 0.1})


def test_a_field_that_stays_anothers_ends_a_verb_whose_change_stays_desired(state, kubernetes, monkeypatch):
    """It says so, and until when; the change is done once raymlops has the field again."""
    monkeypatch.setattr("raymlops.lifecycle.live.change.SHORT_S", 0.2)
    api = Api(kubernetes)
    deploy(state, api)
    share(state, api, 2, TENTH)
    text = kubernetes.object["spec"]["serveConfigV2"]
    kubernetes.owners, kubernetes.object["spec"]["serveConfigV2"] = {"argocd-controller"}, text + " "
    with pytest.raises(ClusterError, match="argocd-controller") as raised:
        take_back(state, api)
    assert "a version on its way is given up after its serve.ready_timeout_s" in raised.value.message
    assert raised.value.hint.startswith("It stays desired")
    assert conditions(state)[EVERYTHING].reason == raised.value.message
    assert runs(kubernetes) == ("m--v1", {2: 0.1})
    kubernetes.apply({"metadata": {}, "spec": {"serveConfigV2": text}}, "raymlops", force=True)
    converge(state, api)
    assert runs(kubernetes) == ("m--v1", {})


def test_a_verb_ends_where_no_operator_sends_what_is_written(state, kubernetes):
    """The field is written once, and the change stays desired for whoever runs when there is an operator again."""
    api = Api(kubernetes)
    deploy(state, api)
    share(state, api, 2, TENTH)
    kubernetes.operates, before = False, len(kubernetes.patched)
    unshare(state, 2)
    with pytest.raises(DeployError, match="Serve has not taken it") as raised:
        converged(Reconciler(state, api, serve=SERVE), state.deployments, wait_s=0.0)
    assert raised.value.hint.startswith("It stays desired")
    assert len(kubernetes.patched) == before + 1
    kubernetes.restart_operator()
    assert runs(kubernetes) == ("m--v1", {})


def test_during_an_upgrade_a_verb_says_what_gets_its_change(state, kubernetes):
    """As a warning where the new cluster takes it, since the old one answers callers; else with the error."""
    api = Api(kubernetes)
    deploy(state, api)
    kubernetes.object["status"]["pendingServiceStatus"] = {"rayClusterName": "flights-new"}
    kubernetes.comes_up = False
    said = "its new cluster flights-new gets every change, and flights-a answers as before"
    assert said in " ".join(share(state, api, 2, TENTH).warnings)
    kubernetes.operates = False
    unshare(state, 2)
    with pytest.raises(DeployError, match="Serve has not taken it") as raised:
        converged(Reconciler(state, api, serve=SERVE), state.deployments, wait_s=0.0)
    assert said in raised.value.hint
    kubernetes.operates = True
    with pytest.raises(DeployError, match="no such layer") as raised:
        deploy(state, api, version=3, bundle=BundleRef("/broken", "b" * 64))
    assert said in raised.value.hint


@pytest.mark.soak  # the walk over all requests takes a quarter of a minute
def test_a_canary_that_is_killed_at_any_request_converges(state, kubernetes):
    """Before each one, and so after the one before it: one champion, no application without its version."""
    healthy = Api(kubernetes)
    deploy(state, healthy)
    kill_at, killed = 0, True
    while killed:
        killed, version = False, kill_at + 2
        try:
            share(state, Api(kubernetes, kill_at=kill_at), version, TENTH)
        except Killed:
            killed = True
        converge(state, healthy)
        check(state, kubernetes)
        holder, shares = runs(kubernetes)
        assert holder == "m--v1"
        assert shares in ({}, {version: 0.1})
        if shares:
            take_back(state, healthy)
            converge(state, healthy)
        assert runs(kubernetes) == ("m--v1", {})
        kill_at += 1
    assert kill_at > 5


def test_a_lost_cluster_is_brought_back_by_the_field_alone(state, kubernetes):
    """Another cluster of the same RayService gets all of it, and the state need not be moved."""
    api = Api(kubernetes)
    deploy(state, api)
    share(state, api, 2, TENTH)
    converge(state, api)
    before = runs(kubernetes)
    kubernetes.serve.live, kubernetes.serve.versions = {}, {}
    kubernetes.object["status"]["pendingServiceStatus"] = {"rayClusterName": "flights-b"}
    kubernetes.restart_operator()
    converge(state, api)
    assert runs(kubernetes) == before
    check(state, kubernetes)
