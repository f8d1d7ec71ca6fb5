"""What a deploy may do while a rollout runs, and what it says of keys, against a state database and Serve in memory."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from fake_serve import FakeServe
from states import deploy, marks, opened

from raymlops.config.load import load_data
from raymlops.config.serve import RolloutSection
from raymlops.errors import RefusedError, TakenError, UsageError
from raymlops.lifecycle.deploy import OPENED, _bring, _Request, _share, rollback_target, running_rollout
from raymlops.lifecycle.live.bring_up import restored
from raymlops.lifecycle.rollout.canary import TrafficRequest, share
from raymlops.records import BundleRef, ModelVersionRef
from raymlops.state.database import state_url
from raymlops.state.rollouts import rollouts
from raymlops.state.store import State


class Aliases:
    """The registry, as far as a change asks it."""

    def set_alias(self, name, alias, version):
        """Take it."""


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """Return the configuration with these settings of ``serve``; nothing of this machine says where a cluster is."""
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path))

    def make(**serve):
        data = {"project": {"name": "m"}, "recipe": {"import": "tiny:Tiny"}, "storage": {"path": str(tmp_path)}}
        return load_data({**data, "serve": {"ready_timeout_s": 1, **serve}}).spec

    return make


@pytest.fixture
def state(configured):
    with State.open(state_url(configured())) as opened:
        yield opened


@pytest.fixture
def bring(state, configured):
    """Return how a version is brought up, with these settings."""
    serve = FakeServe(dashboard_url="http://dashboard:8265")

    def do(version, action="deploy", *, abort=False, **settings):
        ref = ModelVersionRef("m", version, "run", BundleRef("/bundles", "d" * 64))
        request = _Request(configured(**settings), ref, "a test", state, serve, Aliases())
        return _bring(request, action=action, breaking=True, abort=abort)

    do.serve = serve
    return do


@pytest.fixture
def rollout(state, bring, configured):
    """Return the id of the rollout of version 2 beside the champion 1."""
    bring(1)
    bring(2, "deploy.beside")
    asked = TrafficRequest(weight=0.1, rollout=RolloutSection())
    options = {"asked": asked, "serve": configured().serve, "why": "", "now": datetime.now(UTC)}
    return share(state, bring.serve, "m", version=2, champion=1, **options).rollout_id


def ended(state):
    with state.reading() as connection:
        return rollouts(connection, "m")[0].status


def champion(state):
    return next(item.version for item in state.deployments("m") if item.role == "champion")


def test_a_deploy_ends_no_rollout_unless_told_to(state, bring, rollout):
    """Another version is refused, naming it, before it comes up; settings of the champion are not in its way."""
    for version in (2, 3):
        with pytest.raises(RefusedError, match=f"being rolled out: {rollout}") as caught:
            bring(version)
        assert "--abort" in caught.value.hint
    bring(1, max_rows=9)
    assert (ended(state), champion(state), len(state.deployments())) == ("running", 1, 2)
    bring(3, abort=True)
    assert (ended(state), champion(state)) == ("stopped", 3)


def test_the_champion_gets_no_share_beside_a_canary(state, bring, rollout, configured):
    """It does not have all of the traffic, and is not told so."""
    ref = ModelVersionRef("m", 1, "run", BundleRef("/bundles", "d" * 64))
    request = _Request(configured(), ref, "", state, bring.serve, Aliases())
    with pytest.raises(RefusedError, match="version 1 of m is champion already: it answers all that no canary does"):
        _share(request, TrafficRequest(weight=0.2), abort=False)


def test_promoting_what_is_rolled_out_ends_its_rollout(state, bring, rollout):
    """As promoted, with an event that says by what."""
    bring(2, "promote")
    assert (ended(state), champion(state)) == ("promoted", 2)
    event = state.events()[0]
    assert (event.action, event.why) == (
        "rollout.end",
        f"rollout {rollout} promoted: version 2 was made champion by promote",
    )


def test_a_wait_finds_the_rollout_that_runs(configured, state, bring, rollout):
    """Of the version that is named, if one is."""
    assert running_rollout(configured()) == running_rollout(configured(), "2") == rollout
    with pytest.raises(UsageError, match="none of version 3 runs for m"):
        running_rollout(configured(), "3")
    bring(2, "promote")
    with pytest.raises(UsageError, match="none runs for m"):
        running_rollout(configured())


def test_what_a_rollback_would_do_is_told_before(configured, bring, rollout):
    """Whose share it takes away; where nobody has one, between which versions the route moves."""
    assert rollback_target(configured()) == "takes the share of the traffic away from version 2 of m"
    bring(2, "promote")
    assert rollback_target(configured()) == "gives the route of m back from version 2 to version 1"


def test_an_endpoint_is_opened_only_by_saying_so(state, bring):
    """Version 2 does not say: it asks for keys as 1 does. Version 3 says open: so does the record, and the audit."""
    bring(1, auth="keys")
    bring(2)
    bring(4, "deploy.beside", auth="open")
    assert [item.serve["auth"] for item in state.deployments("m")] == ["keys"] * 3
    assert OPENED in bring(3, "promote", auth="open").warnings
    assert {item.serve["auth"] for item in state.deployments("m")} == {"open"}
    assert state.events()[0].why == f"a test: {OPENED}"


def test_an_endpoint_is_opened_by_the_address_that_serve_listens_on(state, bring):
    """Its callers need a key where others reach it, though no setting says so; to open it must be said, and is told."""
    bring.serve.host = "0.0.0.0"
    bring(1)
    assert OPENED in bring(1, auth="open").warnings
    assert "answers without an API key" in "".join(bring(1).warnings)


def test_a_first_deploy_asks_for_a_controller(state, bring):
    """Nothing is warm yet, but the log must be kept to its days; that none could be started here is said."""
    (warning,) = bring(1).warnings
    assert "the controller could not be started" in warning


def test_a_restore_leaves_models_of_another_state_alone(configured, tmp_path):
    """With a state that holds nothing, nothing changes, and that is said; one of the same name keeps no other."""
    serve = FakeServe(dashboard_url="http://dashboard:8265")
    with opened(tmp_path, "theirs") as theirs, opened(tmp_path, "mine") as mine:
        deploy(theirs, serve, "shop")
        live = dict(serve.live)
        back = restored(mine, serve, serve=configured().serve)
        assert (serve.live, back.desired.deployments, back.held) == (live, (), None)
        assert "left alone: raymlops, shop--v1" in back.notes[0]
        elsewhere = FakeServe(dashboard_url="http://elsewhere:8265")
        for name in ("shop", "lab"):
            deploy(mine, elsewhere, name)
        back = restored(mine, serve, serve=configured().serve)
        assert isinstance(back.held, TakenError)
        assert marks(serve)["shop--v1"] == theirs.owner().id
        assert marks(serve)["lab--v1"] == mine.owner().id
