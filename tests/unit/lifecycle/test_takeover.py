"""Making a state answer for what another one deployed: real state databases, Serve in memory."""

from __future__ import annotations

import pytest
from fake_serve import FakeServe
from states import copied, deploy, marks, opened, take_down, unmark

from raymlops.errors import OutdatedStateError, TakenError
from raymlops.lifecycle.takeover import take_over
from raymlops.serving.apply import apply


@pytest.fixture
def serve():
    return FakeServe(dashboard_url="http://dashboard:8265")


@pytest.fixture
def lost(tmp_path, serve):
    """Return the id of a state that deployed two models and is gone."""
    with opened(tmp_path, "lost") as state:
        deploy(state, serve, "shop")
        deploy(state, serve, "lab")
        return state.owner().id


@pytest.fixture
def state(tmp_path):
    with opened(tmp_path, "state") as opened_state:
        yield opened_state


def test_a_model_of_a_lost_state_becomes_this_ones(serve, lost, state):
    """Its version keeps the route until ours is up; the other model, and the index with it, stay the lost state's."""
    with pytest.raises(TakenError):
        deploy(state, serve, "shop", 2)
    assert take_over(state, serve, {"shop"}) == (f"shop is taken over from state {lost[:8]} (made by {maker(state)})",)
    deploy(state, serve, "shop", 2)
    assert marks(serve) == {"shop--v2": state.owner().id, "lab--v1": lost, "raymlops": lost}
    assert serve.live["shop--v2"]["route_prefix"] == "/models/shop"
    event = state.events("shop")[-1]
    assert (event.action, event.after) == ("takeover", {"owner": lost})


def test_with_the_last_model_goes_the_index(serve, lost, state):
    """Then the list of models is this state's, and nothing of the lost one is left."""
    assert len(take_over(state, serve, {"shop", "lab"})) == 2
    deploy(state, serve, "shop", 2)
    assert marks(serve) == {"shop--v2": state.owner().id, "raymlops": state.owner().id}


def test_a_lost_model_can_be_taken_down(serve, lost, state):
    """By a state that never had it."""
    with pytest.raises(TakenError):
        take_down(state, serve, "lab")
    take_over(state, serve, {"lab"})
    take_down(state, serve, "lab")
    assert sorted(serve.live) == ["raymlops", "shop--v1"]


def test_what_carries_no_mark_can_be_taken_over(serve, lost, state):
    """It was deployed by an earlier raymlops whose state is gone."""
    unmark(serve)
    take_over(state, serve, {"shop"})
    deploy(state, serve, "shop", 2)
    assert {"shop--v2", "lab--v1"} <= serve.live.keys()
    assert "shop--v1" not in serve.live


def test_a_backup_can_be_made_to_count(serve, tmp_path):
    """Serve is brought to it, and what a newer copy writes afterwards is news to it again."""
    with opened(tmp_path, "state") as state:
        deploy(state, serve, "shop")
    copied(tmp_path, "state", "backup")
    with opened(tmp_path, "state") as state:
        deploy(state, serve, "shop", 2)
    with opened(tmp_path, "backup") as old:
        assert len(take_over(old, serve, {"shop"})) >= 1
        apply(old.desired(), api=serve, wait_s=2)
        assert sorted(serve.live) == ["raymlops", "shop--v1"]
    with opened(tmp_path, "state") as state, pytest.raises(OutdatedStateError):
        deploy(state, serve, "shop", 3)
    assert sorted(serve.live) == ["raymlops", "shop--v1"]


def test_where_there_is_nothing_to_take_over_nothing_is_written(serve, state):
    """Not even where the model is ours already."""
    deploy(state, serve, "shop")
    before = len(state.events())
    assert take_over(state, serve, {"shop", "lab"}) == ()
    assert len(state.events()) == before


def maker(state):
    return state.owner().made_by
