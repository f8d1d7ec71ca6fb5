from __future__ import annotations

import copy
import socket
from dataclasses import dataclass, field
from typing import Any

import pytest

from raymlops.errors import DeployError, PortTakenError
from raymlops.records import BundleRef
from raymlops.serving.apply import apply
from raymlops.serving.render import DEPLOYMENT
from raymlops.state.store import Deployment

FOREIGN = {"name": "shop", "route_prefix": "/shop", "import_path": "shop:app", "deployments": [], "args": {"a": 1}}


@dataclass
class FakeServe:
    """Serve's REST API in memory: an application comes up by the next look, unless its bundle is ``broken``."""

    dashboard_url: str = "http://127.0.0.1:8265"
    live: dict[str, dict[str, Any]] = field(default_factory=dict)
    sent: list[dict[str, Any]] = field(default_factory=list)
    imperative: tuple[str, ...] = ()
    unhealthy: set[str] = field(default_factory=set)

    def put(self, config: dict[str, Any]) -> None:
        self.sent.append(copy.deepcopy(config))
        self.live = {application["name"]: copy.deepcopy(application) for application in config["applications"]}

    def get(self) -> dict[str, Any]:
        applications = {name: self._details(config) for name, config in self.live.items()}
        for name in self.imperative:
            applications[name] = {"status": "RUNNING", "route_prefix": f"/{name}", "deployed_app_config": None}
        return {"http_options": {"host": "127.0.0.1", "port": 21050}, "applications": applications}

    def _details(self, config):
        broken = "broken" in config["args"].get("bundle_uri", "")
        status = "DEPLOY_FAILED" if broken else "UNHEALTHY" if config["name"] in self.unhealthy else "RUNNING"
        deployments = {}
        for options in config["deployments"]:
            least = options.get("autoscaling_config", {}).get("min_replicas", 1)
            replicas = [] if broken else [{"state": "RUNNING"}] * least
            deployments[options["name"]] = {"message": "boom: no such layer" if broken else "", "replicas": replicas}
        return {
            "status": status,
            "message": "Traceback\n" * 100 + "the constructor raised" if broken else "",
            "route_prefix": config["route_prefix"],
            "deployed_app_config": config,
            "deployments": deployments,
        }

    def routes(self, index: int) -> dict[str, Any]:
        return {item["name"]: item["route_prefix"] for item in self.sent[index]["applications"]}


def deployment(version: int, role: str, *, uri: str = "/bundles", name: str = "flights", **serve) -> Deployment:
    return Deployment(name, version, BundleRef(uri, f"digest{version}"), f"run{version}", role, serve)


def bring(serve: FakeServe, *deployments: Deployment):
    return apply(deployments, api=serve, wait_s=2, probe=False)


def test_a_first_version_comes_up_with_its_route():
    """Where nobody holds the route there is nothing to wait for."""
    serve = FakeServe()
    applied = bring(serve, deployment(1, "champion"))
    assert applied.changed
    assert applied.routes["/models/flights"] == "flights--v1"
    assert applied.base_url == "http://127.0.0.1:21050"
    assert len(serve.sent) == 1


def test_the_same_again_sends_nothing():
    """An unchanged config is not sent, so that nothing can restart."""
    serve = FakeServe()
    bring(serve, deployment(1, "champion"))
    assert not bring(serve, deployment(1, "champion")).changed
    assert len(serve.sent) == 1


def test_a_new_champion_comes_up_beside_the_old_one_first():
    """Two configs: in the first the old version still holds the route, in the second the new one does."""
    serve = FakeServe()
    bring(serve, deployment(1, "champion"))
    bring(serve, deployment(1, "warm"), deployment(2, "champion"))
    assert serve.routes(1) == {"flights--v1": "/models/flights", "raymlops-index": "/", "flights--v2": None}
    assert serve.routes(2) == {"flights--v1": None, "flights--v2": "/models/flights", "raymlops-index": "/"}


def test_a_warm_version_takes_the_route_at_once():
    """A rollback to what is up already is one config."""
    serve = FakeServe()
    bring(serve, deployment(1, "warm"), deployment(2, "champion"))
    bring(serve, deployment(1, "champion"), deployment(2, "warm"))
    assert len(serve.sent) == 2
    assert serve.routes(1)["flights--v1"] == "/models/flights"


def test_a_new_champion_is_first_scaled_to_what_the_old_one_runs():
    """Three replicas are up before the flip sends them the traffic; afterwards its own minimum holds again."""
    serve = FakeServe()
    bring(serve, deployment(1, "champion", min_replicas=3, max_replicas=4))
    bring(serve, deployment(1, "warm", min_replicas=3, max_replicas=4), deployment(2, "champion", max_replicas=4))

    def least(index):
        return {
            item["name"]: item["deployments"][0]["autoscaling_config"]["min_replicas"]
            for item in serve.sent[index]["applications"]
            if item["name"] != "raymlops-index"
        }["flights--v2"]

    assert (least(1), least(2)) == (3, 1)


def test_a_broken_version_leaves_the_route_and_says_why():
    """The message is its own, cut to a screen; the old version is still live; the state before can be applied."""
    serve = FakeServe()
    bring(serve, deployment(1, "champion"))
    with pytest.raises(DeployError, match="boom: no such layer") as caught:
        bring(serve, deployment(1, "warm"), deployment(2, "champion", uri="/broken"))
    assert "the constructor raised" in str(caught.value)
    assert len(str(caught.value).splitlines()) < 30
    assert "/models/flights by flights--v1" in str(caught.value)
    applied = bring(serve, deployment(1, "champion"))
    assert applied.routes == {"/models/flights": "flights--v1", "/": "raymlops-index"}
    assert "flights--v2" not in applied.statuses


def test_a_broken_champion_does_not_stop_the_rollback():
    """The version that loses the route may be unhealthy: that is why it loses it."""
    serve = FakeServe()
    bring(serve, deployment(1, "warm"), deployment(2, "champion"))
    serve.unhealthy = {"flights--v2"}
    applied = bring(serve, deployment(1, "champion"), deployment(2, "warm"))
    assert applied.routes["/models/flights"] == "flights--v1"


def test_another_models_trouble_does_not_stop_a_deploy():
    """What a change does not concern is not waited for."""
    serve = FakeServe()
    bring(serve, deployment(1, "champion", name="digits"))
    serve.unhealthy = {"digits--v1"}
    applied = bring(serve, deployment(1, "champion", name="digits"), deployment(1, "champion"))
    assert applied.statuses["flights--v1"] == "RUNNING"


def test_asking_for_what_is_live_but_broken_is_an_error():
    """No change is needed, and yet it does not answer: that must be said."""
    serve = FakeServe()
    bring(serve, deployment(1, "champion"))
    serve.unhealthy = {"flights--v1"}
    with pytest.raises(DeployError, match="flights--v1 is UNHEALTHY"):
        bring(serve, deployment(1, "champion"))


def test_foreign_applications_stay_as_they_are():
    """Declared ones are sent along unchanged in every step, others are not ours to send."""
    serve = FakeServe(live={"shop": FOREIGN}, imperative=("notebook",))
    bring(serve, deployment(1, "champion"))
    bring(serve, deployment(2, "champion"))
    applied = bring(serve)
    assert serve.live == {"shop": FOREIGN}
    assert set(applied.statuses) == {"shop", "notebook"}
    assert all(FOREIGN in config["applications"] for config in serve.sent)


def test_a_version_that_is_too_slow_is_an_error():
    """Not failed, only not up in time: the message says what it was doing."""

    class Slow(FakeServe):
        def _details(self, config):
            details = super()._details(config)
            details["deployments"][DEPLOYMENT]["message"] = "waiting for 0.2 CPU"
            return {**details, "status": "DEPLOYING"}

    with pytest.raises(DeployError, match=r"flights--v1 is DEPLOYING(.|\n)*waiting for 0.2 CPU"):
        apply([deployment(1, "champion")], api=Slow(), wait_s=0, probe=False)


def test_progress_is_told_once_a_change():
    """Each new status is reported, repetitions are not."""
    told = []
    apply([deployment(1, "champion")], api=FakeServe(), wait_s=2, probe=False, on_status=told.append)
    assert told == [{"flights--v1": "RUNNING", "raymlops-index": "RUNNING"}]


def test_what_an_earlier_attempt_left_failed_is_tried_anew():
    """The failed application is deleted first, or Serve would only repeat its old failure."""
    serve = FakeServe()
    bring(serve, deployment(1, "champion"))
    with pytest.raises(DeployError):
        bring(serve, deployment(1, "warm"), deployment(2, "champion", uri="/broken"))
    sent = len(serve.sent)
    bring(serve, deployment(1, "warm"), deployment(2, "champion"))
    assert "flights--v2" not in serve.routes(sent)
    assert serve.routes(sent)["flights--v1"] == "/models/flights"
    assert serve.routes(-1)["flights--v2"] == "/models/flights"


def test_a_taken_port_is_found_before_serve_starts():
    """Serve does not run and somebody listens on its port: nothing is sent."""

    class NotRunning(FakeServe):
        def get(self):
            return {"applications": {}, "proxies": {}}

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        serve = NotRunning()
        with pytest.raises(PortTakenError):
            apply([deployment(1, "champion")], api=serve, wait_s=2, port=other.getsockname()[1])
    assert serve.sent == []
