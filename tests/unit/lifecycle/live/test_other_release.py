"""What another release of raymlops desired of a model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_serve import FakeServe
from states import SERVE, converge, deploy
from stored import put

from raymlops.errors import StorageError
from raymlops.lifecycle.live.reconciler import Reconciler
from raymlops.lifecycle.overview import overview
from raymlops.state.conditions import EVERYTHING, conditions


@pytest.fixture
def serve(state):
    """Serve with one version each of m and n."""
    serve = FakeServe(dashboard_url="http://dashboard:8265", cpus=100.0)
    for name in ("m", "n"):
        deploy(state, serve, name)
    return serve


def stored(state, name, **settings):
    """Give the champion other settings, as another release would store them."""
    (item,) = state.deployments(name)
    put(state, name, [replace(item, serve=item.serve | settings)])


def test_settings_of_a_next_release_change_nothing_that_is_known(state, serve):
    """Fields at any depth, and words for known ones."""
    before = serve.live
    stored(state, "m", log={**SERVE.log.model_dump(mode="json"), "next": 1}, next=2, proxy="envoy")
    assert converge(state, serve).conditions == {}
    assert serve.live == before


def test_a_model_that_cannot_be_read_stops_no_other(state, serve, tmp_path):
    """It stays as it is, its condition and its verbs say why, and it is moved again once it can be read."""
    before = serve.live["m--v1"]
    stored(state, "m", min_replicas=3, max_replicas="as many as fit")
    deploy(state, serve, "n", 2)
    converge(state, serve)
    assert serve.live["n--v2"]["route_prefix"] == "/models/n"
    assert serve.live["m--v1"] == before
    reason = conditions(state)["m"].reason
    assert "version 1 of m: the settings that another release of raymlops stored cannot be read" in reason
    assert {one.name: (one.condition or {}).get("reason") for one in overview(root=str(tmp_path))} == {
        "m": reason,
        "n": None,
    }
    with pytest.raises(StorageError, match="version 1 of m"):
        deploy(state, serve, "m", 2)
    stored(state, "m", min_replicas=1, max_replicas=3)
    assert converge(state, serve).conditions == {}
    assert serve.live["m--v1"] != before


def test_whatever_ends_a_step_is_said(state, serve):
    """Also what nobody foresaw."""

    class Odd(FakeServe):
        def get(self):
            return {"applications": None}

    with pytest.raises(AttributeError):
        Reconciler(state, Odd(dashboard_url="http://dashboard:8265"), serve=SERVE).step()
    assert "AttributeError" in conditions(state)[EVERYTHING].reason
