"""What ``watch`` says; the controller itself is started by a cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest
from looped import live
from stored import put

from raymlops.config.base import absolute_references
from raymlops.config.load import load_data
from raymlops.config.schema import MonitorSection
from raymlops.errors import ClusterError, RefusedError
from raymlops.lifecycle.live.lineup import champion_of
from raymlops.lifecycle.retraining.watch import WatchRecord, _unlike, watch


@pytest.fixture
def spec(state, tmp_path):
    data = {"project": {"name": "flights"}, "recipe": {"import": "any:Recipe"}, "retrain": {"autonomy": "act"}}
    return load_data({**data, "storage": {"path": str(tmp_path), "state": state.url}}).spec


def test_a_model_that_is_not_live_is_not_watched(spec):
    """There is nothing to retrain."""
    with pytest.raises(RefusedError, match="no version of flights is live"):
        watch(spec)


def test_without_a_cluster_nobody_watches(spec, state, monkeypatch):
    """It says so, rather than that all is well."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    live(state)
    with pytest.raises(ClusterError, match="there is no running cluster"):
        watch(spec)


def test_a_section_that_is_not_in_force_is_named(spec, state):
    """The model was deployed with propose, the file says act."""
    live(state)
    (note,) = _unlike(spec, champion_of(state.deployments("flights")))
    assert note.startswith("the configuration's retrain section is not the one that is deployed")
    live(state, autonomy="act")
    assert _unlike(spec, champion_of(state.deployments("flights"))) == []


@pytest.mark.parametrize("where", [{"env": "NOTIFY_URLS"}, {"file": "notify.txt"}, {"file": "~/notify.txt"}])
def test_references_are_compared_as_they_are_deployed(spec, state, tmp_path, monkeypatch, where):
    """A deployment keeps absolute paths: those of the same file are no difference, and those of another one are."""
    monkeypatch.chdir(tmp_path)
    notified = spec.model_copy(update={"monitor": MonitorSection.model_validate({"notify": where})})
    stored = absolute_references(notified.monitor.model_dump(mode="json"))
    put(state, "flights", [replace(live(state, autonomy="act"), monitor=stored)])
    champion = champion_of(state.deployments("flights"))

    assert _unlike(notified, champion) == []
    other = MonitorSection.model_validate({"notify": {"file": "/elsewhere/notify.txt"}})
    (note,) = _unlike(spec.model_copy(update={"monitor": other}), champion)
    assert note.startswith("the configuration's monitor section")


def test_it_says_who_watches_and_what_is_waited_for():
    """One line each."""
    found = WatchRecord("flights", 3, "root@host (12)", ("propose: no trigger is due",), ("a note",))
    assert found.text() == "watched  by root@host (12)\nloop     propose: no trigger is due\na note"
