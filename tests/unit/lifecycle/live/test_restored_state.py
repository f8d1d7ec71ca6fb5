"""Making a restored state count, and where a state is live: real state databases, Serve in memory."""

from __future__ import annotations

import pytest
from canaries import take_back, version_of
from fake_serve import FakeServe
from states import SERVE, converge, copied, deploy, opened, take_down

from raymlops.errors import ElsewhereError, OutdatedStateError
from raymlops.lifecycle.keys import bring as send_key
from raymlops.lifecycle.live.restored_state import make_count, settle
from raymlops.lifecycle.live.transitions import ROUTE, Request, bring
from raymlops.state.conditions import conditions
from raymlops.state.keys import create_key
from raymlops.state.transitions import newest_transition


@pytest.fixture
def serve():
    return FakeServe(dashboard_url="http://dashboard:8265")


def test_a_backup_can_be_made_to_count(serve, tmp_path):
    """Serve is brought to it, and what a newer copy writes afterwards is news to it again."""
    with opened(tmp_path, "state") as state:
        deploy(state, serve, "shop")
    copied(tmp_path, "state", "backup")
    with opened(tmp_path, "state") as state:
        deploy(state, serve, "shop", 2)
    with opened(tmp_path, "backup") as old:
        with pytest.raises(OutdatedStateError):
            converge(old, serve)
        assert make_count(old, serve)
        assert make_count(old, serve) == ()
        converge(old, serve)
        assert sorted(serve.live) == ["raymlops", "shop--v1"]
    with opened(tmp_path, "state") as state, pytest.raises(OutdatedStateError):
        deploy(state, serve, "shop", 3)
    assert sorted(serve.live) == ["raymlops", "shop--v1"]


def test_what_another_state_deployed_stays_its_own(serve, tmp_path, state):
    """Where one counts there is nothing to write, and it says nothing of anybody else; nor does an empty one."""
    with opened(tmp_path, "other") as other:
        deploy(other, serve, "shop")
    with opened(tmp_path, "empty") as empty:
        assert (make_count(empty, serve), converge(empty, serve).acted, "shop--v1" in serve.live) == ((), False, True)
    deploy(state, serve, "lab")
    before, live = len(state.events()), dict(serve.live)
    assert make_count(state, serve) == ()
    converge(state, serve)
    assert (len(state.events()), serve.live) == (before, live)


def nobody():
    """Return who moves what is live."""


def test_a_state_is_live_on_one_cluster(serve, state):
    """On that of its first verb; on another one nothing is changed, with what is wrong and the two ways on."""
    settle(state, serve, holder=nobody)
    deploy(state, serve, "shop")
    other = FakeServe(dashboard_url="http://other:8265", cluster="o" * 56)
    with pytest.raises(ElsewhereError, match="live on another cluster, cccccccc, not on this one, oooooooo") as caught:
        settle(state, other, holder=nobody)
    assert "deploy --restore" in caught.value.hint
    for act in (converge, deploy, take_down):
        with pytest.raises(ElsewhereError, match="live on another cluster: cccccccc"):
            act(state, other)
    key, _ = create_key(state, name="shop", models=["shop"], now=state.now())
    with pytest.raises(ElsewhereError, match="live on another cluster: cccccccc"):
        send_key(state, other, key, serve=SERVE)
    assert (state.owner().cluster, [item.name for item in state.deployments()]) == (serve.cluster, ["shop"])
    assert (other.sent, sorted(serve.live)) == ([], ["raymlops", "shop--v1"])
    assert conditions(state) == {}, "what is live at home has no condition by that"


def test_a_state_moves_to_another_cluster_by_a_restore_and_from_a_living_one_by_a_takeover(serve, state):
    """As after a restart of the cluster; each move is on the record. With nothing live it moves by itself."""
    settle(state, serve, holder=nobody)
    deploy(state, serve, "shop")
    second, third, fourth = (FakeServe(cluster=name) for name in ("second", "third", "fourth"))
    settle(state, second, holder=nobody, restore=True)
    with pytest.raises(ElsewhereError, match="its controller runs: ann@there"):
        settle(state, third, holder=lambda: "ann@there", restore=True)
    settle(state, third, holder=lambda: "ann@there", restore=True, takeover=True)
    event = state.events()[0]
    assert (event.action, event.before, event.after, event.why) == ("cluster", "second", "third", "restored")
    third.live = {}
    take_down(state, third, "shop")
    settle(state, fourth, holder=nobody)
    assert state.owner().cluster == "fourth"


def test_a_state_on_which_another_cluster_deploys_meanwhile_stays_there(serve, state, monkeypatch):
    """The other cluster had seen nothing live; what is first written there counts."""
    settle(state, serve, holder=nobody)
    other, look = FakeServe(cluster="other"), state.deployments

    def late():
        monkeypatch.undo()
        found = look()
        deploy(state, serve, "shop")
        return found

    monkeypatch.setattr(state, "deployments", late)
    with pytest.raises(ElsewhereError, match="live on another cluster"):
        settle(state, other, holder=nobody)
    assert state.owner().cluster == serve.cluster


def test_what_was_on_its_way_in_a_backup_is_not_resumed(serve, tmp_path):
    """Version 2 came up after the backup, and was rolled back: it does not take the route again."""
    with opened(tmp_path, "state") as state:
        deploy(state, serve, "shop")
        request = Request("deploy", "a test", "me", state.now(), 30.0)
        state.change("shop", lambda model: bring(model, version_of(2, "shop"), goal=ROUTE, request=request, up=False))
    copied(tmp_path, "state", "backup")
    with opened(tmp_path, "state") as state:
        converge(state, serve)
        assert take_back(state, serve, "shop").version == 1
    with opened(tmp_path, "backup") as old:
        assert make_count(old, serve)
        converge(old, serve)
        assert newest_transition(old, "shop", 2).status == "superseded"
        assert [(item.version, item.role) for item in old.deployments()] == [(1, "champion")]
    assert sorted(serve.live) == ["raymlops", "shop--v1"]
