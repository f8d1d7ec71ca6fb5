"""What happened during a replay, as the state tells it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from raymlops.lifecycle.replay.events import EventLog, is_busy, judged_until
from raymlops.lifecycle.replay.flights_asked import BEGIN
from raymlops.state.loop import Retraining, advance, begin, retraining_id, retraining_of
from raymlops.state.store import State

HOUR = timedelta(hours=1)


@pytest.fixture
def state(tmp_path):
    with State.open(f"sqlite:///{tmp_path / 'state.db'}") as opened:
        yield opened


@pytest.fixture
def begun(state):
    """Return a retraining that was decided on."""
    key = "version 1 until April"
    wanted = Retraining(
        id=retraining_id(state.owner().id, "flights", "schedule", key),
        name="flights",
        champion=1,
        champion_run_id="run",
        trigger="schedule",
        evidence=key,
        evidence_at=BEGIN,
        why="28 days",
        settings={},
        actor="controller",
        stage="decided",
        made_at=BEGIN,
        stage_at=BEGIN,
    )
    assert begin(state, wanted)
    return retraining_of(state, wanted.id)


def test_nothing_happens_where_nothing_was_written(state):
    """No window was judged, and nobody is busy."""
    assert EventLog(state, "flights").new() == []
    assert judged_until(state, "flights") < BEGIN
    assert not is_busy(state, "flights")


def test_stages_of_a_retraining_are_told_once(state, begun):
    """Those since the last call, in their order, and why it ended where it failed."""
    log = EventLog(state, "flights")
    after = advance(state, begun, begun.at("training", now=BEGIN + HOUR), why="accepted")
    assert log.new() == [f"retraining {begun.id[:6]} (schedule) decided > training"]
    assert log.new() == []
    gating = replace(after, version=2).at("gating", now=BEGIN + HOUR)
    after = advance(state, after, gating, why="trained")
    assert advance(state, after, after.at("rejected", now=BEGIN + 2 * HOUR, note="it is worse"), why="it is worse")
    assert log.new() == [f"retraining {begun.id[:6]} (schedule, version 2) gating > rejected: it is worse"]


def test_time_stands_still_while_a_retraining_takes_real_time(state, begun):
    """Until its rollout has begun, which takes time of the replay, and when it bakes it does not."""
    assert is_busy(state, "flights")
    after = advance(state, begun, begun.at("rolling_out", now=BEGIN + HOUR), why="passed")
    assert is_busy(state, "flights")
    assert advance(state, after, after.at("baking", now=BEGIN + HOUR), why="promoted")
    assert not is_busy(state, "flights")
