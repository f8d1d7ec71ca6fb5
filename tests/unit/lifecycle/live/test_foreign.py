"""Applications that are not of raymlops, by the name or at the route of a model: that model stands still, no other."""

from __future__ import annotations

from datetime import timedelta

import pytest
from canaries import beside, take_back, version_of
from fake_serve import FakeServe
from states import SERVE, converge, deploy, take_down

from raymlops.errors import TakenError
from raymlops.lifecycle.keys import bring as bring_key
from raymlops.lifecycle.live import transitions
from raymlops.lifecycle.live.reconciler import Reconciler
from raymlops.state.conditions import conditions
from raymlops.state.keys import create_key, revoke_key
from raymlops.state.transitions import newest_transition


@pytest.fixture
def serve(state):
    """Serve with two versions of m, and one of n."""
    serve = FakeServe(dashboard_url="http://dashboard:8265", cpus=100.0)
    for name, version in (("m", 1), ("m", 2), ("n", 1)):
        deploy(state, serve, name, version)
    return serve


def declare(serve, name, route):
    """Add an application as ``serve deploy`` does, by which Serve ends ours at its route."""
    serve.live = {key: config for key, config in serve.live.items() if config["route_prefix"] != route}
    serve.live[name] = {"name": name, "route_prefix": route, "import_path": "shop:app", "args": {}, "deployments": []}


def began(state, name, version):
    """Write a deploy whose verb is killed then."""
    request = transitions.Request("deploy", "a test", "me", state.now(), 30.0)

    def decide(model):
        return transitions.bring(model, version_of(version, name), goal=transitions.ROUTE, request=request, up=False)

    state.change(name, decide)


def test_what_took_a_route_blocks_no_other_model(state, serve):
    """The condition names it, and what to do; once it is gone the model comes back."""
    declare(serve, "other", "/models/n")
    assert take_back(state, serve).version == 1
    assert serve.live["m--v1"]["route_prefix"] == "/models/m"
    assert "n--v1" not in serve.live
    converge(state, serve)
    reason = conditions(state)["n"].reason
    assert "the Serve application 'other', which is not of raymlops, has the route /models/n" in reason
    assert "Remove it (serve.delete('other')" in reason
    with pytest.raises(TakenError, match="'other'"):
        deploy(state, serve, "n", 2)
    del serve.live["other"]
    converge(state, serve)
    assert serve.live["n--v1"]["route_prefix"] == "/models/n"
    assert conditions(state) == {}


def test_what_has_the_name_of_the_next_version_blocks_no_other_model(state, serve):
    """The version before it keeps the route; in the end the next one is taken back."""
    declare(serve, "n--v2", "/x")
    with pytest.raises(TakenError, match=r"'n--v2'.* has the name of a version of n"):
        deploy(state, serve, "n", 2)
    began(state, "n", 2)
    assert take_back(state, serve).version == 1
    assert serve.live["n--v1"]["route_prefix"] == "/models/n"
    assert "'n--v2'" in conditions(state)["n"].reason
    Reconciler(state, serve, serve=SERVE).step(state.now() + timedelta(seconds=31))
    assert "'n--v2'" in newest_transition(state, "n", 2).reason
    assert serve.live["n--v2"]["import_path"] == "shop:app"
    converge(state, serve)
    assert conditions(state) == {}


def test_what_serve_run_started_keeps_its_name_and_route(state, serve):
    """It is not declared, and a config with its name or its route would take it away."""
    serve.imperative = ("models/shop",)
    with pytest.raises(TakenError, match="'models/shop'"):
        deploy(state, serve, "shop")
    serve.imperative = ("n--v2",)
    with pytest.raises(TakenError, match="'n--v2'"):
        deploy(state, serve, "n", 2)


def test_a_champion_whose_name_was_taken_stands_still(state, serve):
    """The version that took the route back is not removed, and takes keys."""
    beside(state, serve, 3, name="n")
    serve.slow.add("n--v3")
    began(state, "n", 3)
    declare(serve, "n--v3", "/x")
    serve.slow.clear()
    key, _ = create_key(state, name="shop", models=["n"], now=state.now())
    converge(state, serve)
    assert serve.live["n--v1"]["route_prefix"] == "/models/n"
    hashes = str(serve.live["n--v1"]["deployments"][0]["user_config"]["access"])
    assert key.id in hashes
    revoke_key(state, key.id, now=state.now())
    bring_key(state, serve, key, serve=SERVE)
    assert key.id not in str(serve.live["n--v1"]["deployments"][0]["user_config"]["access"])
    del serve.live["n--v1"]
    with pytest.raises(TakenError):
        bring_key(state, serve, key, serve=SERVE)


def test_a_model_whose_route_was_taken_can_be_removed(state, serve):
    """What took it stays."""
    declare(serve, "other", "/models/n")
    take_down(state, serve, "n")
    assert state.deployments("n") == []
    assert {"other", "m--v2"} <= serve.live.keys()
    assert converge(state, serve).conditions == {}
