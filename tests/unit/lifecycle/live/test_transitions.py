"""What a verb makes of a model, where somebody else was faster. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from raymlops.config.serve import RolloutSection
from raymlops.lifecycle.live.rollouts import begin
from raymlops.lifecycle.live.transitions import (
    PROMOTED,
    ROLLBACK,
    ROUTE,
    Request,
    bring,
    failed,
    reached,
    unshared,
)
from raymlops.lifecycle.live.withdrawals import roll_back, route_takers, version_removed
from raymlops.lifecycle.rollout.canary import TrafficRequest
from raymlops.records import BundleRef
from raymlops.state.audit import AuditEvent
from raymlops.state.store import Deployment, Model

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def item(version, role="warm", **fields):
    return Deployment("m", version, BundleRef("/bundles", "d" * 64), "run", role, {}, **fields)


def request(action):
    return Request(action, "a test", "me", NOW, 60.0)


def versions(model):
    return {one.version: one.role for one in model.deployments}


def test_room_is_made_by_what_is_idle_when_it_is_written():
    """Version 1 was idle when its removal was thought of; it took the route, a share, or is on its way since."""
    new, goal = item(3), {**ROUTE, "configured": True}
    taken = Model("m", (item(1, "champion"), item(2)))
    asked = bring(taken, new, goal=goal, request=request("deploy"), up=False, leaving=(1,))
    assert versions(asked.model) == {1: "champion", 2: "warm", 3: "warm"}
    coming = bring(Model("m", (item(1), item(2, "champion"))), item(1), goal=ROUTE, request=request(ROLLBACK), up=False)
    share = {"champion": 2, "weight": 0.1}
    asked = bring(coming.model, new, goal=share, request=request("deploy.canary"), up=False, leaving=(1,))
    assert versions(asked.model) == {1: "warm", 2: "champion", 3: "warm"}
    idle = Model("m", (item(1), item(2, "champion")))
    asked = bring(idle, new, goal=goal, request=request("deploy"), up=False, leaving=(1,))
    assert versions(asked.model) == {2: "champion", 3: "warm"}


def test_what_made_room_is_restored_whoever_requested_the_version_last():
    """Version 3 is requested twice before it comes up: version 1 left for the second request, and version 2 stays."""
    goal, model = {**ROUTE, "configured": True}, Model("m", (item(1), item(2, "champion")))
    model = bring(model, item(3), goal=goal, request=request("deploy"), up=False).model
    more = replace(item(3), serve={"min_replicas": 2})
    model = bring(model, more, goal=goal, request=request("deploy"), up=False, leaving=(1,)).model
    assert versions(model) == {2: "champion", 3: "warm"}
    (coming,) = model.coming
    assert versions(failed(model, coming.id, "boom", now=NOW).model) == {1: "warm", 2: "champion"}
    assert versions(version_removed(model, 3, why="a test").model) == {1: "warm", 2: "champion"}


def test_what_had_made_room_for_a_superseded_version_makes_room_for_the_next():
    """Version 1 left for version 3, which version 4 supersedes: it comes back if 4 fails, or if it is itself that."""
    goal, model = {**ROUTE, "configured": True}, Model("m", (item(1), item(2, "champion")))
    model = bring(model, item(3), goal=goal, request=request("deploy"), up=False, leaving=(1,)).model
    model_4 = bring(model, item(4), goal=goal, request=request("deploy"), up=False).model
    assert versions(model_4) == {2: "champion", 4: "warm"}
    (coming,) = model_4.coming
    assert versions(failed(model_4, coming.id, "boom", now=NOW).model) == {1: "warm", 2: "champion"}
    model_1 = bring(model, item(1), goal=goal, request=request("deploy"), up=False).model
    assert versions(model_1) == {1: "warm", 2: "champion"}


@pytest.mark.parametrize(
    ("asked", "off", "left"),
    [
        (TrafficRequest(weight=0.1), TrafficRequest(weight=0.0), None),
        (TrafficRequest(weight=0.1, rollout=RolloutSection()), TrafficRequest(weight=0.0), None),
        (TrafficRequest(shadow=0.5), TrafficRequest(shadow=0.0), None),
        (TrafficRequest(weight=0.1), TrafficRequest(shadow=0.0), TrafficRequest(weight=0.1)),
        (
            TrafficRequest(weight=0.1, shadow=0.5, rollout=RolloutSection()),
            TrafficRequest(weight=0.0),
            TrafficRequest(shadow=0.5),
        ),
    ],
)
def test_a_share_that_a_version_comes_up_for_is_taken_away(asked, off, left):
    """Version 2 comes up for what is left of its traffic; without any it is taken back, and version 1 has its room."""
    model = Model("m", (item(1), item(3, "champion")))
    model = bring(model, item(2), goal=asked.goal(3), request=request(asked.action), up=False, leaving=(1,)).model
    model = unshared(model, 2, off.goal(3), action=off.action, why="off").model
    assert [one.goal for one in model.coming] == ([left.goal(3)] if left else [])
    assert versions(model) == ({2: "warm", 3: "champion"} if left else {1: "warm", 3: "champion"})


OLD = {"log": {"redact": []}, "allowed_hosts": ["old"], "max_rows": 1}
NEW = {"log": {"redact": ["email"]}, "allowed_hosts": [], "max_rows": 2}


def settings(model):
    """Return the settings of each version that is up: serve without an undecided auth, autonomy, monitor."""
    return {
        one.version: (
            {key: value for key, value in one.serve.items() if key != "auth"},
            one.retrain["autonomy"],
            one.monitor["window_h"],
        )
        for one in model.deployments
    }


def configured(version, role="warm", serve=NEW, autonomy="observe", window_h=1, **fields):
    """Return a version with these settings."""
    monitor, retrain = {"window_h": window_h}, {"autonomy": autonomy}
    return replace(item(version, role, **fields), serve=serve, monitor=monitor, retrain=retrain)


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("stands", [True, False])
def test_a_rollback_keeps_the_settings_of_the_model(stands, up):
    """Version 1 comes back with its own size, and with what was last asked of the model; warm or from the record."""
    first, second = configured(1, serve=OLD, autonomy="act", window_h=24), configured(2, "champion")
    events = [
        AuditEvent(1, NOW, "me", "deploy", "m", [replace(first, role="champion").to_dict()], [second.to_dict()], "")
    ]
    model = Model("m", (first, second) if stands else (second,))
    model = roll_back(model, events, request=request(ROLLBACK), up=lambda _item: up).model
    for coming in model.coming:
        model = reached(model, coming.id, now=NOW).model
    assert versions(model) == {1: "champion", 2: "warm"}
    assert settings(model) == {1: ({**NEW, "max_rows": 1}, "observe", 1), 2: (NEW, "observe", 1)}


def test_the_newest_deploy_sets_the_model_whatever_it_asks_for():
    """A canary's, once it is up: the champion redacts what it does; taking its share away brings nothing back."""
    model = Model("m", (configured(1, "champion", serve=OLD, autonomy="act", window_h=24),))
    goal = TrafficRequest(weight=0.1).goal(1)
    model = bring(model, configured(2), goal=goal, request=request("deploy.canary"), up=False).model
    assert settings(model)[1] == (OLD, "act", 24)
    (coming,) = model.coming
    model = reached(model, coming.id, now=NOW).model
    both = {1: ({**NEW, "max_rows": 1}, "observe", 1), 2: (NEW, "observe", 1)}
    assert settings(model) == both
    off = TrafficRequest(weight=0.0)
    assert settings(unshared(model, 2, off.goal(1), action=off.action, why="off").model) == both


def test_what_made_room_comes_back_with_the_settings_of_the_model():
    """Version 1 left for version 3 with its old ones, and comes back where version 3 fails."""
    model = Model("m", (configured(1, serve=OLD, autonomy="act"), configured(2, "champion")))
    model = bring(model, configured(3), goal=ROUTE, request=request("deploy"), up=False, leaving=(1,)).model
    (coming,) = model.coming
    model = failed(model, coming.id, "boom", now=NOW).model
    assert settings(model)[1] == ({**NEW, "max_rows": 1}, "observe", 1)


def test_of_two_rollbacks_at_once_the_second_changes_nothing():
    """Both saw version 3 live, and the first has given its route to version 2."""
    model = Model("m", (item(1), item(2, "champion"), item(3)))
    again = roll_back(model, [], request=request(ROLLBACK), up=lambda _item: True, champion=3)
    assert again.model is model


def test_a_rollout_whose_version_fails_as_champion_is_taken_back():
    """It comes back by its number and --again alone, like any aborted one."""
    rollout = begin(rollout_id="r", name="m", version=2, champion=1, settings=RolloutSection(steps=(10.0,)), now=NOW)
    model = Model("m", (item(1, "champion"), item(2, weight=0.1)), rollout)
    promoted = bring(model, item(2, weight=0.1), goal=ROUTE, request=request(PROMOTED), up=False).model
    (coming,) = promoted.coming
    change = failed(promoted, coming.id, "boom", now=NOW)
    assert change.model.rollout is not None
    assert change.model.rollout.status == "aborted"
    assert change.withdraws == {2: "version 2 did not come up as champion: boom"}


def test_a_deploy_on_its_way_is_what_a_rollback_takes_back_first():
    """Whatever else its goal says; a rollback on its way is not."""
    model = Model("m", (item(1, "champion"),))
    asked = bring(model, item(2), goal={**ROUTE, "configured": True}, request=request("deploy"), up=False).model
    assert [one.version for one in route_takers(asked)] == [2]
    back = replace(asked, transitions=tuple(replace(one, action=ROLLBACK) for one in asked.transitions))
    assert route_takers(back) == []


@pytest.mark.parametrize("role", ["champion", "warm"])
def test_other_windows_of_drift_alone_restart_nothing(role):
    """How a version is watched is the controller's; what is up stays up, and what was watched otherwise is kept."""
    model = Model("m", (item(1, "champion"), item(2)) if role == "warm" else (item(2, "champion"),))
    new = item(2, monitor={"window_h": 6})
    changed = bring(model, new, goal={**ROUTE, "configured": True}, request=request("deploy"), up=True)
    assert changed.model.coming == ()
    assert [one.monitor for one in changed.model.deployments if one.version == 2] == [{"window_h": 6}]
    back = bring(changed.model, item(2), goal=ROUTE, request=request(ROLLBACK), up=True)
    assert [one.monitor for one in back.model.deployments if one.version == 2] == [{"window_h": 6}]
