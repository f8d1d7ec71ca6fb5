"""The clock: the machine's, or that of a replay."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import raymlops
from raymlops.errors import StorageError
from raymlops.predictions.labels import Label, LabelLog
from raymlops.serving.request import Exchange
from raymlops.state.store import State
from raymlops.storage import clock

APRIL = datetime(2013, 4, 1, 4, tzinfo=UTC)
ASKS = "datetime.now(UTC)"


@pytest.fixture
def replay(tmp_path, monkeypatch):
    """Return the file of a replay's clock, which this process is part of."""
    file = tmp_path / "clock"
    clock.set_replay(file, APRIL)
    monkeypatch.setenv(clock.FILE, str(file))
    return file


def test_without_a_replay_it_is_the_machines_clock(monkeypatch):
    """Between two readings of it."""
    monkeypatch.delenv(clock.FILE, raising=False)
    before = time.time()
    assert before <= clock.now_s() <= time.time()
    assert not clock.replayed()


def test_in_a_replay_it_stands_still_until_it_is_set(replay):
    """To any time, past or to come."""
    assert clock.now() == APRIL
    clock.set_replay(replay, APRIL + timedelta(hours=6))
    assert clock.now() == APRIL + timedelta(hours=6)


def test_intervals_go_on_by_both_clocks(replay):
    """An hour of the replay is an hour, and so is each second while it stands still."""
    before = clock.interval_s()
    clock.set_replay(replay, APRIL + timedelta(hours=1))
    between = clock.interval_s()
    assert between >= before + 3600
    assert clock.interval_s() >= between


def test_a_clock_that_cannot_be_read_is_an_error(replay):
    """Not the machine's time among rows of a replay."""
    replay.write_text("soon", encoding="ascii")
    with pytest.raises(StorageError, match="clock of the replay"):
        clock.now_s()
    replay.unlink()
    with pytest.raises(StorageError, match="RAYMLOPS_REPLAY_CLOCK"):
        clock.now()


def test_what_is_live_is_dated_by_it(replay, tmp_path):
    """The state's clock and its audit events."""
    with State.open(f"sqlite:///{tmp_path / 'state.db'}") as state:
        assert state.now() == APRIL
        state.record(action="test", subject="flights", why="a replay", actor="me")
        assert next(iter(state.events())).ts == APRIL


def test_requests_are_dated_by_it(replay):
    """As the prediction log has them."""
    assert Exchange(headers={}, request_id="a", version=1).ts == APRIL.timestamp()


def test_labels_are_dated_by_it(replay, tmp_path):
    """By when they came in."""
    log = LabelLog(str(tmp_path), name="flights", writer="one")
    log.add([Label("a", 0, "1.0")]).result(30)
    log.close()
    assert [path.parent.name for path in tmp_path.rglob("*.parquet")] == ["date=2013-04-01"]


def test_nothing_that_is_dated_goes_by_another_clock():
    """What is asked of the log, the state and the watch is compared with what they have."""
    root = Path(raymlops.__file__).parent
    rooms = ("cli", "lifecycle", "predictions", "monitor", "serving")
    asking = [
        str(path.relative_to(root))
        for room in rooms
        for path in (root / room).rglob("*.py")
        if ASKS in path.read_text()
    ]
    assert asking == []
