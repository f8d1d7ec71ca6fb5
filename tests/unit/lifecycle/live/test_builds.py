"""Configs that wait for the builds that they would begin again, against a real state database and Serve in memory."""

from __future__ import annotations

from datetime import timedelta

import pytest
from canaries import share, version_of
from fake_serve import FakeServe
from states import SERVE, deploy

from raymlops.lifecycle.live.builds import BUILD_S
from raymlops.lifecycle.live.reconcile import Hold, Send, next_step
from raymlops.lifecycle.live.reconciler import Reconciler
from raymlops.lifecycle.live.transitions import ROLLBACK, ROUTE, Request, bring
from raymlops.lifecycle.live.withdrawals import aborted, removed, superseded, version_removed
from raymlops.lifecycle.rollout.canary import TrafficRequest
from raymlops.state.conditions import conditions
from raymlops.state.keys import create_key, revoke_key


@pytest.fixture
def serve():
    return FakeServe(dashboard_url="http://dashboard:8265")


@pytest.fixture
def reconciler(state, serve):
    return Reconciler(state, serve, serve=SERVE)


def begin(state, version, *, name="m", goal=ROUTE, action="deploy", **request):
    """Desire that a version comes up."""
    asked = Request(action, "a test", "me", state.now(), SERVE.ready_timeout_s, **request)
    state.change(name, lambda model: bring(model, version_of(version, name), goal=goal, request=asked, up=False))


def change(state, decide):
    state.change("m", decide)


def with_key(state):
    return create_key(state, name="k", models=["m"], now=state.now())[0]


WAITS = {
    "a model is deployed": lambda state: begin(state, 1, name="new"),
    "a version comes up": lambda state: begin(state, 3, goal={}),
    "a key is created": with_key,
    "a version on standby ends": lambda state: change(state, lambda model: version_removed(model, 2, why="a test")),
    "a version that comes up is given up": lambda state: change(
        state, lambda model: superseded(model, action="a test", why="")
    ),
}
GOES = {
    "a key is revoked": lambda state: revoke_key(state, "first", now=state.now()),
    "a rollback comes up": lambda state: begin(state, 3, action=ROLLBACK, hurry=True),
    "a route moves": lambda state: change(
        state,
        lambda model: bring(
            model,
            model.item(2),
            goal=ROUTE,
            request=Request("deploy", "", "me", state.now(), 30.0),
            up=True,
        ),
    ),
    "a model is removed": lambda state: change(state, lambda model: removed(model, now=state.now(), why="a test")),
    "a share is taken back": lambda state: change(
        state, lambda model: aborted(model, why="a test", now=state.now(), action="a test")
    ),
}


@pytest.mark.parametrize("what", [*WAITS, *GOES])
def test_only_what_takes_nothing_back_waits_for_builds(state, serve, reconciler, what):
    """Another model is being built; that of a config which waits is not begun again."""
    for version in (1, 2, 1):
        deploy(state, serve, version=version)
    deploy(state, serve, "other")
    create_key(state, name="first", models=["m"], now=state.now())
    if what == "a share is taken back":
        share(state, serve, 2, TrafficRequest(weight=0.5))
    if what == "a version that comes up is given up":
        serve.slow = {"m--v3"}
        begin(state, 3)
    while reconciler.step().acted:
        pass
    serve.building, at = {"other--v1"}, state.now()
    reconciler.step(at)
    (WAITS | GOES)[what](state)
    plan, before = reconciler.look(), conditions(state)
    step, found = next_step(plan, before, now=at)
    assert isinstance(step, Hold if what in WAITS else Send)
    if what in WAITS:
        waits = [one.reason for name, one in found.items() if name in {"m", "new"}]
        assert waits == [str(step)]
        assert str(step) == "changes wait while Serve builds other--v1, which each change begins again"
    step, found = next_step(plan, found, now=at + timedelta(seconds=BUILD_S))
    assert isinstance(step, Send)
    assert next_step(plan, found, now=at + timedelta(seconds=BUILD_S + 1))[0] == step


def test_changes_of_one_model_let_the_builds_of_others_end(state, serve, reconciler):
    """All that was asked for meanwhile is one config. A version that waits has its whole time to come up from there."""
    deploy(state, serve, "other")
    deploy(state, serve)
    serve.building, at = {"other--v1", "raymlops"}, state.now()
    sent = len(serve.sent)
    for second in range(int(BUILD_S)):
        if second < 3:
            begin(state, second + 1, name=f"m{second}")
        look = reconciler.step(at + timedelta(seconds=second))
        assert not look.acted
    assert (len(serve.sent), serve.cancelled) == (sent, {})
    assert all(one.started_at is None for one in look.plan.desired.coming)
    serve.building = set()
    assert reconciler.step(at + timedelta(seconds=BUILD_S)).acted
    assert len(serve.sent) == sent + 1
    while reconciler.step(at + timedelta(seconds=BUILD_S)).acted:
        pass
    assert serve.cancelled == {}
    assert {"m0--v1", "m1--v2", "m2--v3"} <= serve.live.keys()
    assert conditions(state) == {}


def test_a_build_that_hangs_holds_nothing_for_long(state, serve, reconciler):
    """Neither does one of a model that may take less time to come up."""
    section = replace_timeout(10)
    deploy(state, serve, "other", section=section)
    deploy(state, serve)
    serve.building, at = {"other--v1"}, state.now()
    begin(state, 2)
    assert not reconciler.step(at).acted
    assert not reconciler.step(at + timedelta(seconds=9)).acted
    assert reconciler.step(at + timedelta(seconds=10)).acted
    begin(state, 3, goal={})
    assert reconciler.step(at + timedelta(seconds=11)).acted


class Failing(FakeServe):
    """Serve on which a model does not start."""

    def _details(self, config):
        fails = {"status": "DEPLOY_FAILED", "deployments": {}} if config["name"] == "m--v1" and self.unhealthy else {}
        return super()._details(config) | fails


def test_a_failing_application_is_not_ended_while_others_are_built(state):
    """Which is a config too."""
    serve = Failing(dashboard_url="http://dashboard:8265")
    reconciler = Reconciler(state, serve, serve=SERVE)
    deploy(state, serve, "other")
    deploy(state, serve)
    serve.unhealthy, at = {"m--v1"}, state.now()
    reconciler.step(at)
    serve.building = {"other--v1"}
    before = conditions(state)["m"]
    assert not reconciler.step(at + timedelta(seconds=5)).acted
    assert conditions(state)["m"] == before
    serve.building = set()
    assert reconciler.step(at + timedelta(seconds=6)).acted


def replace_timeout(seconds):
    return SERVE.model_copy(update={"ready_timeout_s": float(seconds)})
