"""The feed: requests at their times, labels when they are due."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest

from raymlops.lifecycle.replay.feed import Feed
from raymlops.lifecycle.replay.flights_asked import BEGIN, Request
from raymlops.storage import clock

LAG = timedelta(days=7)


class Endpoint:
    """Answers with the clock's time as request id, and keeps the labels that it gets."""

    def __init__(self):
        self.labels = []

    def predict(self, name, rows):
        outputs = [{"probability": 0.25} for _ in rows]
        return SimpleNamespace(model_version="1", request_id=f"{clock.now():%d %H:%M}", outputs=outputs)

    def feedback(self, name, labels):
        self.labels.append((clock.now(), labels))


@pytest.fixture
def endpoint():
    return Endpoint()


@pytest.fixture
def feed(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv(clock.FILE, str(tmp_path / "clock"))
    return Feed(endpoint, "flights", clock_file=tmp_path / "clock", label_lag=LAG)


def sent(feed, after):
    request = Request(BEGIN + after, 0, [{"hour": 6}, {"hour": 7}], [1, 0])
    return feed.send(request, score=lambda output: output["probability"])


def test_a_request_is_sent_at_its_time(feed):
    """The clock is set to it, and stands still there."""
    assert sent(feed, timedelta(hours=2)) == ("1", [0.25, 0.25])
    assert clock.now() == BEGIN + timedelta(hours=2)


def test_labels_are_sent_once_when_they_are_due(feed, endpoint):
    """A week after their request: not a minute before, and not again."""
    sent(feed, timedelta(0))
    sent(feed, timedelta(days=1))
    feed.until(BEGIN + LAG - timedelta(minutes=1))
    assert endpoint.labels == []
    feed.until(BEGIN + LAG)
    feed.until(BEGIN + LAG + timedelta(hours=1))
    first = f"{BEGIN:%d %H:%M}"
    wanted = [{"request_id": first, "row": 0, "label": 1}, {"request_id": first, "row": 1, "label": 0}]
    assert endpoint.labels == [(BEGIN + LAG, wanted)]
    assert feed.labels == 2
