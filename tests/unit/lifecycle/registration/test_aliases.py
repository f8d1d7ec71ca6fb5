"""Whose a model's aliases in MLflow are, where states share it: a real MLflow, two real states and controllers."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fake_serve import FakeServe
from serving_bundles import scale_bundle
from states import SERVE
from stored import put

from raymlops.config.load import load_data
from raymlops.errors import TakenError
from raymlops.lifecycle.overview import overview
from raymlops.lifecycle.registration.aliases import MlflowAliases, own_aliases
from raymlops.lifecycle.rollout.controller import ALIAS_EVERY_S, Controller
from raymlops.lifecycle.rollout.evidence import Reports
from raymlops.records import ModelVersionRef
from raymlops.registry.versions import Registry
from raymlops.state.database import state_url
from raymlops.state.store import Deployment, State
from raymlops.state.versions import record_version, withdraw
from raymlops.tracking.client import tracker

START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Cluster:
    """A state with a version live, and its controller."""

    spec: Any
    state: State
    aliases: MlflowAliases
    controller: Controller = field(init=False)
    seconds: float = 0.0

    def __post_init__(self):
        serve = FakeServe(cpus=100.0)
        self.controller = Controller(
            self.state, serve, serve=SERVE, reports=Reports(), aliases=self.aliases, clock=lambda: self.seconds
        )

    def round(self):
        self.controller.step(START + timedelta(seconds=self.seconds))
        self.seconds += ALIAS_EVERY_S

    def events(self):
        return [(one.action, one.subject) for one in self.state.events() if one.action.startswith("alias.")][::-1]

    def shown(self):
        (found,) = overview(self.spec)
        return found.summary()["aliases"]


@pytest.fixture
def registry(tmp_path):
    """Return the registry of the MLflow that both have, with two versions."""
    ours = tracker(spec_of(tmp_path, "production"))
    found = Registry(ours)
    for factor in (1.0, 2.0):
        run_id = ours.start_run("scale", name="trained", tags={})
        found.register("scale", run_id=run_id, bundle=scale_bundle(tmp_path, factor=factor))
    return found


def spec_of(folder, name):
    data = {"project": {"name": "scale"}, "recipe": {"import": "any:Recipe"}}
    places = {"tracking": {"uri": f"sqlite:///{folder}/mlflow.db"}, "storage": {"path": str(folder / name)}}
    return load_data({**data, **places}).spec


@pytest.fixture
def clusters(tmp_path, registry):
    """Return staging with version 2 live and production with version 1."""
    found = []
    for name, version in (("staging", 2), ("production", 1)):
        spec = spec_of(tmp_path, name)
        state = State.open(state_url(spec))
        bundle = registry.get("scale", str(version)).bundle
        serve = SERVE.model_dump(mode="json")
        put(state, "scale", [Deployment("scale", version, bundle, "run", "champion", serve)])
        found.append(Cluster(spec, state, MlflowAliases(spec, state.owner())))
    yield found
    for one in found:
        one.state.close()


def test_the_first_state_that_deploys_owns_them_and_the_other_says_so_once(clusters, registry):
    """Each controller looks every 30 seconds: the alias stays, and neither audit record grows."""
    staging, production = clusters
    for _ in range(20):
        for one in clusters:
            one.round()
            assert registry.by_alias("scale", "champion").version == 2
    assert staging.events() == [("alias.follow", "scale/2")]
    assert production.events() == [("alias.left", "scale")]
    assert staging.shown() is None
    assert staging.state.owner().id in production.shown()
    assert "raymlops models own scale" in production.shown()


def test_a_person_hands_them_over(clusters, registry):
    """To a state that names what is live there at once, also where nothing was left of its own; and back."""
    staging, production = clusters
    for one in clusters:
        one.round()
    assert own_aliases(production.spec) == 1
    for _ in range(3):
        for one in clusters:
            one.round()
            assert registry.by_alias("scale", "champion").version == 1
    assert production.events()[1:] == [("alias.own", "scale")]
    assert staging.events()[1:] == [("alias.left", "scale")]
    assert production.shown() is None
    with pytest.raises(TakenError, match=f"are of the state {production.state.owner().id} .*raymlops models own scale"):
        staging.aliases.set_champion("scale", 2)
    assert own_aliases(staging.spec) == 2
    for one in clusters:
        one.round()
    assert (staging.shown(), staging.events()[2:]) == (None, [("alias.own", "scale")])


def test_a_version_that_was_taken_back_elsewhere_stays_challenger(clusters, registry):
    """Production took version 2 back, which passed its gate in the state that owns the aliases."""
    staging, production = clusters
    staging.round()
    registry.set_alias("scale", "challenger", 2)
    bundle = registry.get("scale", "2").bundle
    record_version(production.state, ModelVersionRef("scale", 2, "run", bundle), why="", now=START)
    with production.state.writing() as connection:
        withdraw(connection, "scale", 2, "a test")
    production.round()
    assert registry.by_alias("scale", "challenger").version == 2


@pytest.mark.parametrize("tag", [" ", "\n"])
def test_a_tag_of_spaces_names_no_owner(clusters, registry, tag):
    """Somebody emptied it by hand."""
    registry.set_owner("scale", tag)
    staging, _ = clusters
    staging.round()
    assert staging.events() == [("alias.follow", "scale/2")]
    assert registry.owner("scale").startswith(staging.state.owner().id)


def test_a_model_that_was_made_again_is_of_who_has_a_version_of_it(clusters, registry):
    """Staging, which looks first, has version 2 live, and there is none any more."""
    staging, production = clusters
    mlflow = tracker(staging.spec)
    bundle = registry.get("scale", "1").bundle
    mlflow.client.delete_registered_model("scale")
    run_id = mlflow.start_run("scale", name="trained", tags={})
    registry.register("scale", run_id=run_id, bundle=bundle)
    for _ in range(2):
        for one in (staging, production):
            one.round()
    assert registry.owner("scale").startswith(production.state.owner().id)
    assert registry.by_alias("scale", "champion").version == 1
    assert production.events() == [("alias.follow", "scale/1")]
    assert staging.events() == [("alias.left", "scale")]
