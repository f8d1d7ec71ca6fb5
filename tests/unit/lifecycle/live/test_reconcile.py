"""Steps towards the desired state, against a real state database and Serve's API in memory."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest
from canaries import share
from fake_serve import FakeServe
from states import SERVE, deploy, opened
from stored import put

from raymlops.errors import DeployError
from raymlops.lifecycle.live.reconciler import Reconciler
from raymlops.lifecycle.live.transitions import ROUTE, Request, bring
from raymlops.lifecycle.rollout.canary import TrafficRequest
from raymlops.records import BundleRef
from raymlops.serving.names import DEPLOYMENT
from raymlops.state.store import Deployment

MENDED = SERVE.model_copy(update={"max_rows": 5})


class Mending(FakeServe):
    """Serve on which new settings make an unhealthy version healthy."""

    def put(self, config):
        super().put(config)
        self.unhealthy = set()


@pytest.fixture
def state(tmp_path):
    with opened(tmp_path, "state") as state:
        yield state


def test_new_settings_can_mend_a_champion_that_is_unhealthy(state):
    """What it was before they were sent says nothing of them."""
    serve = Mending(dashboard_url="http://dashboard:8265")
    deploy(state, serve)
    serve.unhealthy = {"m--v1"}
    assert deploy(state, serve, section=MENDED).changed
    assert [item.serve["max_rows"] for item in state.deployments()] == [5]


def test_a_warm_version_that_is_unhealthy_gets_no_route(state):
    """Nothing new would be sent to it: it fails at once."""
    serve = FakeServe(dashboard_url="http://dashboard:8265")
    for version in (1, 2, 1):
        deploy(state, serve, version=version)
    serve.unhealthy, sent = {"m--v2"}, len(serve.sent)
    with pytest.raises(DeployError, match="m--v2 is UNHEALTHY"):
        deploy(state, serve, version=2)
    assert len(serve.sent) == sent
    assert {item.version: item.role for item in state.deployments()} == {1: "champion", 2: "warm"}


class Rationed(FakeServe):
    """Serve that has room for some replicas of a version only, and on which some fail."""

    room: ClassVar[dict[str, int]] = {}
    """Most replicas of an application; none of one that fails."""

    def _details(self, config):
        details, most = super()._details(config), self.room.get(config["name"])
        if most is not None:
            details["deployments"][DEPLOYMENT]["replicas"] = [{"state": "RUNNING"}] * most
            details |= (
                {"status": "DEPLOYING", "message": "waiting for 0.2 CPU"} if most else {"status": "DEPLOY_FAILED"}
            )
        return details


@pytest.fixture
def serve():
    return Rationed(dashboard_url="http://dashboard:8265")


@pytest.fixture
def reconciler(state, serve):
    return Reconciler(state, serve, serve=SERVE)


def begin(state, version, *, name="m", timeout_s=60.0, digest="d" * 64, **settings):
    """Desire that a version comes up for the route, and return when."""
    began = datetime.now(UTC)
    new = Deployment(name, version, BundleRef("/bundles", digest), "run", "champion", settings)
    request = Request("deploy", "a test", "me", began, timeout_s)
    state.change(name, lambda model: bring(model, new, goal={**ROUTE, "configured": True}, request=request, up=False))
    return began


def steps(reconciler, at):
    """Take the steps that are due at a time, and return how many, and the last look."""
    taken = 0
    while (look := reconciler.step(at)).acted:
        taken += 1
    return taken, look


def champion(state, name="m"):
    return next((item.version for item in state.deployments(name) if item.role == "champion"), None)


def test_a_version_that_does_not_come_up_in_time_is_taken_back(state, serve, reconciler):
    """It is said what it did instead; the version before it still has the route."""
    deploy(state, serve)
    serve.slow = {"m--v2"}
    began = begin(state, 2)
    _, look = steps(reconciler, began + timedelta(seconds=59))
    assert look.conditions["m"].reason.startswith("version 2 of m comes up: 0 of 1 replicas run")
    _, look = steps(reconciler, began + timedelta(seconds=60))
    assert look.conditions == {}
    assert (champion(state), set(serve.live)) == (1, {"m--v1", "raymlops"})
    (failed,) = (one for one in state.model("m").transitions if one.version == 2)
    assert failed.reason.startswith("not ready in time: version 2 of m comes up")


def test_a_version_takes_the_route_where_there_is_no_room_for_all_its_replicas(state, serve, reconciler):
    """The holder runs three, and two more never come: it goes ahead after a while."""
    deploy(state, serve, section=SERVE.model_copy(update={"min_replicas": 3, "max_replicas": 3}))
    serve.room = {"m--v2": 1}
    began = begin(state, 2, max_replicas=3)
    steps(reconciler, began)
    _, look = steps(reconciler, began + timedelta(seconds=19))
    assert (champion(state), look.conditions["m"].since) == (1, began)
    steps(reconciler, began + timedelta(seconds=20))
    assert champion(state) == 2
    assert serve.live["m--v2"]["route_prefix"] == "/models/m"


def test_what_fails_is_started_anew_after_pauses_that_double(state, serve, reconciler):
    """Serve has given it up, and would not try again by itself; what is not due is not touched."""
    deploy(state, serve)
    serve.room = {"m--v1": 0}
    at, started = datetime.now(UTC), []
    for second in range(40):
        before = serve.started.count("m--v1")
        _, look = steps(reconciler, at + timedelta(seconds=second))
        if serve.started.count("m--v1") > before:
            started.append(second)
    assert started == [5, 15, 35]
    condition = look.conditions["m"]
    assert (condition.attempts, condition.since) == (3, at)
    serve.room = {}
    assert steps(reconciler, at + timedelta(seconds=80))[1].conditions == {}


def test_a_config_that_serve_refuses_fails_the_version_that_came_last(state, serve, reconciler):
    """What was desired before is sent again."""
    deploy(state, serve)
    put = serve.put

    def refuse(config):
        if any(one["name"] == "m--v2" for one in config["applications"]):
            raise DeployError("Serve refuses it: no such field")
        put(config)

    serve.put = refuse
    began = begin(state, 2)
    begin(state, 1, name="other")  # newer, and not at fault
    assert (steps(reconciler, began)[1].conditions, champion(state), champion(state, "other")) == ({}, 1, 1)
    (failed,) = (one for one in state.model("m").transitions if one.version == 2)
    assert (failed.status, failed.reason) == ("failed", "Serve refuses it: no such field")


def test_what_cannot_be_written_fails_alone(state, serve, reconciler):
    """A share that leaves the others too little by the time that its version is up: another model goes on."""
    for version in (1, 2):
        deploy(state, serve, version=version)
    began = datetime.now(UTC)
    new = Deployment("m", 3, BundleRef("/bundles", "d" * 64), "run", "warm", {})
    goal = {"champion": 2, "weight": 0.6}
    request = Request("deploy.canary", "a test", "me", began, 60.0)
    state.change("m", lambda model: bring(model, new, goal=goal, request=request, up=False))
    put(state, "m", [replace(item, weight=0.6 if item.version == 1 else 0) for item in state.deployments("m")])
    begin(state, 1, name="other")
    steps(reconciler, began)
    assert champion(state, "other") == 1
    assert [(one.version, one.status) for one in state.model("m").transitions if one.version == 3] == [(3, "failed")]


def test_three_canaries_may_have_all_of_the_traffic(state, serve):
    """34, 56 and 10 percent add up to a little more than 1 in binary."""
    deploy(state, serve)
    for version, weight in ((2, 0.34), (3, 0.56), (4, 0.1)):
        share(state, serve, version, TrafficRequest(weight=weight))
    assert sum(item.weight for item in state.deployments()) == pytest.approx(1)


def test_a_champion_that_fails_is_started_anew_before_a_warm_version_that_does(state, serve, reconciler):
    """Both bundles are away; once the champion's is back it must not wait for the other's."""
    for version in (1, 2):
        deploy(state, serve, version=version)
    serve.room = {"m--v1": 0, "m--v2": 0}
    at = datetime.now(UTC)
    for second in range(30):
        steps(reconciler, at + timedelta(seconds=second))
    assert serve.started.count("m--v2") > serve.started.count("m--v1")
    serve.room = {"m--v1": 0}
    for second in range(30, 80):
        steps(reconciler, at + timedelta(seconds=second))
    assert serve.get()["applications"]["m--v2"]["status"] == "RUNNING"


def test_a_config_for_what_is_no_longer_desired_is_not_sent(state, serve, reconciler):
    """A key was revoked after the state was read: that config would make it good again."""
    deploy(state, serve)
    began, read, sent = begin(state, 2), serve.get, len(serve.sent)

    def get():
        if len(state.events()) == events:
            state.record(action="key.revoke", subject="api-key:k")
        return read()

    events, serve.get = len(state.events()), get
    assert reconciler.step(began).acted
    assert len(serve.sent) == sent
    steps(reconciler, began)
    assert "m--v2" in serve.live


def test_another_bundle_under_a_number_comes_up_before_it_gets_the_route(state, serve, reconciler):
    """The version was removed while Serve was away, and registered anew: what still runs by its number is not it."""
    for version in (1, 2, 1):
        deploy(state, serve, version=version)
    put(state, "m", [item for item in state.deployments("m") if item.version == 1])
    began = begin(state, 2, digest="e" * 64)
    assert reconciler.step(began).acted
    sent = serve.live["m--v2"]
    assert (sent["args"]["digest"], sent["route_prefix"], champion(state)) == ("e" * 64, None, 1)
    steps(reconciler, began)
    assert (serve.live["m--v2"]["route_prefix"], champion(state)) == ("/models/m", 2)
