"""Taking down one version that stands beside the champion, against a state database and Serve in memory."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from fake_serve import FakeServe

from raymlops.config.serve import RolloutSection, ServeSection
from raymlops.errors import NotFoundError, RefusedError, UsageError
from raymlops.lifecycle.remove_version import number_of, take_down
from raymlops.lifecycle.rollout.canary import TrafficRequest, share
from raymlops.records import BundleRef
from raymlops.state.store import Deployment, State

SERVE = ServeSection(ready_timeout_s=1)
CHAMPION = Deployment("m", 1, BundleRef("/bundles", "d" * 64), "run", "champion", SERVE.model_dump(mode="json"))


def beside(version, **fields):
    return replace(CHAMPION, version=version, role="warm", **fields)


@pytest.fixture
def state(tmp_path):
    with State.open(f"sqlite:///{tmp_path}/state.db") as opened:
        yield opened


@pytest.fixture
def down(state):
    """Return what takes a version down of those that are given beside the champion."""
    serve = FakeServe(dashboard_url="http://dashboard:8265")  # not on this machine, so that no route is probed

    def do(version, *others):
        state.put_deployments({"m": [CHAMPION, *others]}, action="deploy", why="a test")
        take_down(state, serve, "m", version=version, serve=SERVE)

    do.serve = serve
    return do


def up(serve):
    return sorted(name for name in serve.live if name.startswith("m--"))


def test_a_warm_version_goes_and_the_others_stay(state, down):
    """On Serve, in the desired state and on the record."""
    down(2, beside(2), beside(3))
    assert [item.version for item in state.deployments("m")] == [1, 3]
    assert up(down.serve) == ["m--v1", "m--v3"]
    event = state.events("m")[0]
    assert (event.action, event.why) == ("remove.version", "version 2 requested")
    assert [len(side) for side in (event.before, event.after)] == [3, 2]


@pytest.mark.parametrize("traffic", [{"weight": 0.2}, {"shadow": 0.5}])
def test_a_version_with_traffic_loses_it_before_it_goes(state, down, traffic):
    """The champion sends it nothing any more by the time that it goes."""
    down(2, beside(2, **traffic))
    assert [item.version for item in state.deployments("m")] == [1]
    assert up(down.serve) == ["m--v1"]
    told, gone = ([item["name"] for item in sent["applications"]] for sent in down.serve.sent[-2:])
    assert "m--v2" in told
    assert "m--v2" not in gone
    assert [event.why for event in state.events("m")[:2]] == [
        "version 2 requested",
        "version 2 requested, its traffic first",
    ]


def test_the_champion_is_refused(state, down):
    with pytest.raises(RefusedError, match="version 1 of m is the champion") as caught:
        down(1, beside(2))
    assert "--remove without --version" in caught.value.hint
    assert len(state.deployments("m")) == 2


def test_a_version_that_is_rolled_out_is_refused(state, down):
    """Its rollout is ended first, by name."""
    state.put_deployments({"m": [CHAMPION, beside(2)]}, action="deploy", why="a test")
    asked = TrafficRequest(weight=0.1, rollout=RolloutSection())
    options = {"asked": asked, "serve": SERVE, "why": "", "now": datetime.now(UTC)}
    rollout = share(state, down.serve, "m", version=2, champion=1, **options).rollout_id
    with pytest.raises(RefusedError, match=f"version 2 of m is being rolled out: {rollout}") as caught:
        take_down(state, down.serve, "m", version=2, serve=SERVE)
    assert "raymlops rollback" in caught.value.hint


def test_a_version_that_is_not_up_is_not_found(down):
    with pytest.raises(NotFoundError, match=r"version 9 of m is not up; versions that are: 1 \(champion\), 2 \(warm\)"):
        down(9, beside(2))


def test_a_version_is_taken_down_by_its_number():
    """An alias may name another one a moment later."""
    assert number_of("12") == 12
    with pytest.raises(UsageError, match="not '@challenger'"):
        number_of("@challenger")
