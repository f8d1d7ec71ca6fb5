"""The weeks of a replay, with an endpoint that answers at once and a controller that is never busy."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest

from raymlops.arrays import Column
from raymlops.lifecycle.replay.flights_asked import BEGIN, WEEK
from raymlops.lifecycle.replay.run import JUDGED_AFTER, LABEL_LAG, Replay, Trained
from raymlops.signature import Signature
from raymlops.splits import Splits
from raymlops.state.store import State
from raymlops.storage import clock

INPUTS = (Column("origin", "string"), Column("hour", "int"))


class Recipe:
    """Two flights a week from one airport, of which the first is late."""

    label = "late"

    def signature(self):
        return Signature(inputs=INPUTS, outputs=(Column("probability", "float"),))

    def datasets(self, window):
        weeks = (window.stop - LABEL_LAG - window.start) // WEEK  # and an hour
        start = np.datetime64(window.start.replace(tzinfo=None), "m")
        at = [start + np.timedelta64(7 * 24 * week + hours, "h") for week in range(weeks) for hours in (30, 60)]
        table = {
            "origin": np.full(2 * weeks, "JFK", object),
            "hour": np.tile([6, 7], weeks),
            "late": np.tile([1.0, 0.0], weeks),
            "moment": np.array(at),
        }
        parts = np.array_split(np.arange(2 * weeks), 3)
        return Splits(*({name: values[part] for name, values in table.items()} for part in parts))

    def row_times(self, columns):
        return columns["moment"]


class Endpoint:
    """Answers .75, and keeps what it gets and when."""

    def __init__(self):
        self.asked, self.labels = [], []

    def predict(self, name, rows):
        self.asked.append((clock.now() - BEGIN, rows))
        outputs = [{"probability": 0.75} for _ in rows]
        return SimpleNamespace(model_version="1", request_id=str(len(self.asked)), outputs=outputs)

    def feedback(self, name, labels):
        self.labels += [(clock.now() - BEGIN, each["request_id"], each["label"]) for each in labels]


@pytest.fixture
def endpoint():
    return Endpoint()


@pytest.fixture
def waited():
    """Return the times at which the replay waited, with whether what it waited for was there."""
    return []


@pytest.fixture
def replay(endpoint, waited, tmp_path, monkeypatch):
    """Return a replay of two weeks; its first version answers .5, and the log has a row of each request that came."""
    monkeypatch.setenv(clock.FILE, str(tmp_path / "clock"))
    clock.set_replay(tmp_path / "clock", BEGIN)
    model = SimpleNamespace(recipe=Recipe(), predict_rows=lambda rows: [{"probability": 0.5} for _ in rows])
    project = SimpleNamespace(spec=SimpleNamespace(project=SimpleNamespace(name="flights")))
    first = Trained(project, "1", model, tmp_path, ())

    def wait(done, limit_s):
        waited.append((clock.now() - BEGIN, done()))

    def logged(since, until):
        return sum(since <= BEGIN + at < until for at, _ in endpoint.asked)

    with State.open(f"sqlite:///{tmp_path / 'state.db'}") as state:
        yield Replay(first, state, endpoint, weeks=2, clock_file=tmp_path / "clock", wait=wait, logged=logged)


def test_a_day_ends_once_its_rows_are_in_the_log(replay, waited):
    """Its hours are counted when it ends: a row that came later would wait for the end of the next one."""
    replay.week(0)
    assert [found for found in waited if found[0] in {timedelta(hours=30), timedelta(hours=60)}] == [
        (timedelta(hours=30), True),
        (timedelta(hours=60), True),
    ]


def test_a_week_sends_its_requests_at_their_times(replay, endpoint):
    """And ends once it can be judged."""
    week = replay.week(0)
    assert [(at, [row["hour"] for row in rows]) for at, rows in endpoint.asked] == [
        (timedelta(hours=30), [6]),
        (timedelta(hours=60), [7]),
    ]
    assert clock.now() == BEGIN + WEEK + JUDGED_AFTER
    assert (week.number, week.rows, week.late, week.versions) == (1, 2, 0.5, {"1": 2})
    assert week.losses == pytest.approx(
        {"live": -(np.log(0.75) + np.log(0.25)) / 2} | dict.fromkeys(("frozen", "blind"), np.log(2))
    )


def test_labels_come_a_week_later_day_by_day(replay, endpoint):
    """At the first end of a day in New York at which they are due: 30 + 168 = 198 h, so 216 h, and one to count."""
    replay.week(0)
    assert endpoint.labels == []
    replay.week(1)
    assert endpoint.labels == [(timedelta(hours=217), "1", 1), (timedelta(hours=241), "2", 0)]
