"""Several states on one Serve: real state databases, Serve's API in memory."""

from __future__ import annotations

import pytest
from fake_serve import FakeServe
from states import converge, copied, deploy, marks, opened, take_down, unmark

from raymlops.errors import OutdatedStateError, TakenError
from raymlops.serving.control.ownership import divide
from raymlops.state.keys import create_key, revoke_key


@pytest.fixture
def serve():
    return FakeServe(dashboard_url="http://dashboard:8265")  # where no proxy is asked whether it answers


@pytest.fixture
def first(tmp_path):
    with opened(tmp_path, "first") as state:
        yield state


@pytest.fixture
def second(tmp_path):
    with opened(tmp_path, "second") as state:
        yield state


def theirs(serve, name):
    return {key: value for key, value in serve.live.items() if key.startswith(f"{name}--")}


def test_what_another_state_deployed_stays_as_it_is(serve, first, second):
    """Through a deploy, a next version, a change of settings and a removal of ours; no replica of it is touched."""
    deploy(first, serve, "shop")
    before, touched = theirs(serve, "shop"), serve.reconfigured["shop--v1"]
    deploy(second, serve, "lab")
    deploy(second, serve, "lab", 2)
    converge(second, serve)
    take_down(second, serve, "lab")
    assert theirs(serve, "shop") == before
    assert (serve.started.count("shop--v1"), serve.reconfigured["shop--v1"]) == (1, touched)
    assert sorted(serve.live) == ["raymlops", "shop--v1"]


def test_an_empty_state_removes_nothing(serve, first, second):
    """Its controller has nothing to do, and says what it saw."""
    deploy(first, serve, "shop")
    sent = len(serve.sent)
    (note,) = converge(second, serve).plan.notes
    assert len(serve.sent) == sent
    assert note.startswith("2 applications of another state on this Serve, left alone: raymlops, shop--v1")
    assert first.owner().short in note


def test_a_second_state_is_told_of_the_first_and_has_no_index(serve, first, second):
    """The list of models stays the first one's; once that is gone, the next change brings one of ours."""
    deploy(first, serve, "shop")
    done = deploy(second, serve, "lab")
    assert len(done.warnings) == 2
    assert "left alone: raymlops, shop--v1" in done.warnings[0]
    assert "models of this one are reached at /models/NAME" in done.warnings[1]
    assert marks(serve) == {
        "shop--v1": first.owner().id,
        "raymlops": first.owner().id,
        "lab--v1": second.owner().id,
    }
    take_down(first, serve, "shop")
    assert not deploy(second, serve, "lab", 2).warnings
    assert marks(serve)["raymlops"] == second.owner().id


def test_a_model_of_another_state_is_refused_before_anything_is_written(serve, first, second):
    """By any version of it, saying whose it is and what to do; neither Serve nor the state changes."""
    deploy(first, serve, "shop")
    sent = len(serve.sent)
    for version in (1, 2):
        with pytest.raises(TakenError, match=f"shop on this Serve belongs to state {first.owner().short}") as caught:
            deploy(second, serve, "shop", version)
        assert caught.value.exit_code == 4
        assert "project.name" in caught.value.hint
        assert "serve.delete(NAME)" in caught.value.hint
    assert (second.deployments(), second.events(), len(serve.sent)) == ([], [], sent)


def test_a_name_that_is_lost_keeps_no_other_model_from_changing(serve, first, second):
    """Both desire it, as where a project was deployed elsewhere too: the others are brought up, and it is said."""
    deploy(second, FakeServe(dashboard_url="http://elsewhere:8265"), "shop")
    deploy(first, serve, "shop")
    done = deploy(second, serve, "lab")
    assert marks(serve)["shop--v1"] == first.owner().id
    assert any(text.startswith("not brought up: the model shop on this Serve") for text in done.warnings)
    with pytest.raises(TakenError, match="shop"):
        deploy(second, serve, "shop")
    take_down(second, serve, "shop")
    assert [item.name for item in second.deployments()] == ["lab"]
    assert "shop--v1" in serve.live


def test_what_carries_no_mark_is_marked_where_this_state_deployed_it_and_no_replica_restarts(serve, first):
    """As after an upgrade: the version is known by its digest; a step of the controller is enough."""
    deploy(first, serve, "shop")
    unmark(serve)
    started = list(serve.started)
    converge(first, serve)
    assert set(marks(serve).values()) == {first.owner().id}
    assert serve.started == started
    take_down(first, serve, "shop")
    assert serve.live == {}


@pytest.mark.parametrize("digest", ["d" * 64, "e" * 64])
def test_what_carries_no_mark_and_was_not_deployed_here_is_another_states(serve, first, second, digest):
    """Neither removed nor replaced, also where the number, or the very bundle, is the same."""
    deploy(first, serve, "shop")
    unmark(serve)
    before = dict(serve.live)
    converge(second, serve)
    deploy(second, serve, "lab")
    with pytest.raises(TakenError, match="belongs to a state of which an earlier raymlops left no mark"):
        deploy(second, serve, "shop", digest=digest)
    assert {name: serve.live[name] for name in before} == before


def test_unchanged_applications_keep_their_revision(serve, first):
    """Another one would be handed to each replica of each model at each change of any of them."""
    deploy(first, serve, "shop")
    touched = serve.reconfigured["shop--v1"]
    deploy(first, serve, "lab")
    deploy(first, serve, "lab", 2)
    assert (serve.started.count("shop--v1"), serve.reconfigured["shop--v1"]) == (1, touched)
    (options,) = serve.live["lab--v2"]["deployments"]
    number, at = first.owner().revision
    assert options["user_config"]["state"]["revision"] <= number
    assert options["user_config"]["state"]["at"] <= at


def test_an_older_backup_is_recognised_and_changes_nothing(serve, tmp_path):
    """It would remove what was deployed since and make a revoked key good again; changes to it make it no newer."""
    with opened(tmp_path, "state") as state:
        deploy(state, serve, "shop")
        key, _ = create_key(state, name="caller", models=["shop"], now=state.events()[0].ts)
    copied(tmp_path, "state", "backup")
    with opened(tmp_path, "state") as state:
        revoke_key(state, key.id, now=state.events()[0].ts)
        deploy(state, serve, "lab")
    sent, live = len(serve.sent), dict(serve.live)
    with opened(tmp_path, "backup") as old:
        for _ in range(5):
            old.record(action="something", subject="else")  # its numbers pass those that Serve has
        for attempt in (
            lambda: converge(old, serve),
            lambda: deploy(old, serve, "shop", 2),
            lambda: take_down(old, serve, "shop"),
        ):
            with pytest.raises(OutdatedStateError, match="a newer copy of this state database") as caught:
                attempt()
        assert "deploy --restore --takeover" in caught.value.hint
        assert [item.version for item in old.deployments()] == [1]
    assert (len(serve.sent), serve.live) == (sent, live)
    with opened(tmp_path, "state") as state:
        assert not deploy(state, serve, "lab").changed


def test_what_was_ended_by_serve_itself_is_free(serve, first, second):
    """As where the state is lost: then another one deploys the model, and is given the index with its next change."""
    deploy(first, serve, "shop")
    serve.live.pop("shop--v1")
    deploy(second, serve, "shop", 2)
    assert marks(serve) == {"shop--v2": second.owner().id, "raymlops": first.owner().id}


def test_whose_each_application_is(serve, first, second):
    """Ours, of others, and of no raymlops at all."""
    deploy(first, serve, "shop")
    deploy(second, serve, "lab")
    serve.live["web"] = {"name": "web", "route_prefix": "/web", "import_path": "web:app", "args": {}, "deployments": []}
    division = divide(serve.get(), second.desired())
    assert [sorted(part) for part in (division.ours, division.others, division.foreign)] == [
        ["lab--v1"],
        ["raymlops", "shop--v1"],
        ["web"],
    ]
    assert list(division.others) == ["shop--v1", "raymlops"]
