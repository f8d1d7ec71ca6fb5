"""Keys as verbs: the state changes whatever the cluster does, and a cluster that is there is brought to it."""

from __future__ import annotations

import pytest
from fake_serve import FakeServe
from states import copied, deploy, opened
from stored import put

from raymlops.config.schema import ProjectSpec
from raymlops.errors import DeployError, NotFoundError, OutdatedStateError
from raymlops.lifecycle.keys import NO_CLUSTER, _open_models, bring, create, keys, revoke, rotate
from raymlops.records import BundleRef
from raymlops.state.database import state_url
from raymlops.state.keys import create_key, revoke_key
from raymlops.state.store import Deployment, State


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """Return a project whose state is new and whose machine runs no cluster."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path / "home"))
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    data = {"project": {"name": "flights"}, "recipe": {"import": "a:B"}, "storage": {"path": str(tmp_path / "store")}}
    return ProjectSpec.model_validate(data)


@pytest.fixture
def state(spec):
    with State.open(state_url(spec)) as opened:
        yield opened


def put_one(state, *, name="flights", uri="/bundles", **serve):
    """Write version 1 as champion."""
    put(state, name, [Deployment(name, 1, BundleRef(uri, "d" * 64), "run1", "champion", serve)])


def ids(serve, app):
    """Return the ids of the keys that an application's replicas were last sent."""
    (options,) = serve.live[app]["deployments"]
    return [key["id"] for key in options["user_config"]["access"]["keys"]]


def test_a_key_is_made_without_a_cluster(spec):
    """For the project's model, with its secret, and the answer says that nobody knows it yet."""
    change = create(spec, "shop", rate_per_s=2.0, expires_in_s=3600)
    assert (change.live, change.note, change.failed) == (False, NO_CLUSTER, False)
    assert change.key.models == ("flights",)
    assert (change.key.expires_at - change.key.created_at).total_seconds() == 3600
    assert change.secret not in repr(change)
    assert keys(spec) == [change.key]


def test_a_rotated_key_ends_and_a_revoked_one_has_ended(spec):
    """Each is in the state at once, with the other key beside it."""
    first = create(spec, "shop", models=["*"])
    second = rotate(spec, "shop", grace_s=60)
    assert (second.old.id, second.key.models) == (first.key.id, ("*",))
    assert second.old.expires_at is not None
    ended = revoke(spec, second.key.id)
    assert ended.secret is None
    assert [key.revoked_at is None for key in keys(spec)] == [True, False]


def test_a_key_that_is_not_there_changes_nothing(spec):
    """No event, no config sent."""
    with pytest.raises(NotFoundError, match="nobody"):
        revoke(spec, "nobody")


def test_a_cluster_that_does_not_answer_is_said(spec, monkeypatch):
    """The key is revoked all the same, but somebody must look after the cluster, where no controller can be started."""
    key = create(spec, "shop").key
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")  # the discard port: nothing listens
    change = revoke(spec, key.id)
    assert (change.live, change.failed) == (False, True)
    assert "has not taken it" in change.note
    assert "the controller could not be started" in change.note
    assert keys(spec)[0].revoked_at is not None


def test_replicas_get_the_keys_of_their_model(spec, state):
    """Those of another model do not reach them; a revoked one is gone with the next config."""
    serve = FakeServe()
    put_one(state)
    put_one(state, name="digits")
    mine, others = create(spec, "shop").key, create(spec, "lab", models=["digits"]).key
    bring(state, serve, mine, serve=spec.serve)
    assert (ids(serve, "flights--v1"), ids(serve, "digits--v1")) == ([mine.id], [others.id])
    bring(state, serve, revoke(spec, mine.id).key, serve=spec.serve)
    assert (ids(serve, "flights--v1"), ids(serve, "digits--v1")) == ([], [others.id])


def test_a_model_that_does_not_take_it_is_said(spec, state):
    """Only where the key is for that model: another broken one keeps nobody's key from ending."""
    serve = FakeServe()
    put_one(state)
    put_one(state, name="digits", uri="/broken")
    key, others = create(spec, "shop").key, create(spec, "lab", models=["digits"]).key
    bring(state, serve, key, serve=spec.serve)
    with pytest.raises(DeployError, match="digits--v1"):
        bring(state, serve, others, serve=spec.serve)


def test_a_key_that_may_not_do_what_it_is_for_is_doubted(spec, state):
    """It is made all the same: pin without predict, and a name that nobody ever deployed."""
    put_one(state, name="digits")
    change = create(spec, "shop", models=["digits", "digit"], scopes=["pin"])
    assert [text.partition(":")[0] for text in change.warnings] == [
        "the key cannot predict",
        "no model digit was ever deployed, as far as the state here knows; live are",
    ]
    put(state, "digits", [], action="remove")
    for name, models in (("own", ()), ("all", ["*"]), ("gone", ["digits"])):
        assert create(spec, name, models=models).warnings == ()


def test_open_models_of_a_key_are_named(spec, state):
    """The one that asks for keys is not, nor one that the key does not open."""
    put_one(state, name="digits", auth="keys")
    put_one(state)
    assert create(spec, "all", models=["*"]).open_models == ("flights",)
    assert create(spec, "one", models=["digits"]).open_models == ()


def test_a_key_leaves_models_of_another_state_alone(spec, state, tmp_path):
    """The cluster that the environment names runs others' models: they stay, and it is said whose they are."""
    serve = FakeServe(dashboard_url="http://dashboard:8265")
    with opened(tmp_path, "other") as other:
        deploy(other, serve, "flights")
    live = dict(serve.live)
    plan = bring(state, serve, create(spec, "shop").key, serve=spec.serve)
    assert serve.live == live
    assert "left alone: flights--v1, raymlops" in plan.notes[0]


def test_a_key_that_was_revoked_since_a_backup_does_not_become_good_again(tmp_path, spec):
    """Whoever changes another key by the backup brings it back; nothing is sent."""
    serve = FakeServe(dashboard_url="http://dashboard:8265")
    with opened(tmp_path, "state") as state:
        deploy(state, serve, "flights")
        now = state.events()[0].ts
        key, _ = create_key(state, name="left", models=["flights"], now=now)
        bring(state, serve, key, serve=spec.serve)
    copied(tmp_path, "state", "backup")
    with opened(tmp_path, "state") as state:
        bring(state, serve, revoke_key(state, key.id, now=now), serve=spec.serve)
    with opened(tmp_path, "backup") as old:
        fresh, _ = create_key(old, name="new", models=["flights"], now=now)
        with pytest.raises(OutdatedStateError):
            bring(old, serve, fresh, serve=spec.serve)
    assert ids(serve, "flights--v1") == []


def test_whether_a_model_is_open_goes_by_where_serve_listens(spec, state):
    """Keys are asked for on every address, though the configuration of the model has loopback."""
    serve = FakeServe(dashboard_url="http://dashboard:8265", host="0.0.0.0")
    deploy(state, serve, "flights")
    plan = bring(state, serve, create(spec, "shop").key, serve=spec.serve)
    for reach, names in ((plan.listens.reach, ()), ("127.0.0.1", ("flights",)), (None, ("flights",))):
        assert _open_models(["flights"], spec=spec, state=state, reach=reach) == names
