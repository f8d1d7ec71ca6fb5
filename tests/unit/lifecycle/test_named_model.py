from __future__ import annotations

from dataclasses import replace

from stored import put

from raymlops.lifecycle.named_model import named, was_deployed
from raymlops.lifecycle.sources import stores_of
from raymlops.records import BundleRef
from raymlops.state.database import state_url
from raymlops.state.store import Deployment, State


def test_a_name_alone_is_enough_once_the_model_was_deployed(tmp_path, monkeypatch):
    """Also after it was taken down; before, its configuration has to be named, and the gate's answer says so."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path))
    assert not was_deployed("m")
    with State.open(state_url(stores_of(None))) as state:
        assert not was_deployed("m")
        put(state, "m", [Deployment("m", 1, BundleRef("/b", "d" * 64), "r1", "champion")])
        put(state, "m", [])
    assert was_deployed("m")


def test_a_name_brings_the_settings_it_was_deployed_with_last(tmp_path, monkeypatch):
    """Those of its endpoint and of how its traffic is watched; an earlier release stored none of the latter."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path))
    item = Deployment("m", 1, BundleRef("/b", "d" * 64), "r1", "champion", {"timeout_s": 7.0})
    for monitor, expected in (({}, 24), ({"window_h": 6, "of a later release": 1}, 6)):
        with State.open(state_url(stores_of(None))) as state:
            put(state, "m", [replace(item, monitor=monitor)])
        found = named("m")
        assert (found.serve.timeout_s, found.monitor.window_h) == (7.0, expected)
