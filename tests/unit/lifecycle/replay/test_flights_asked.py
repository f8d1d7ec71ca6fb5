"""Rows of flights as requests."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from raymlops.lifecycle.replay.flights_asked import BEGIN, asked
from raymlops.recipes.flights import Flights
from raymlops.recipes.flights_features import CATEGORICAL, LABEL, NUMERIC

MINUTE = int(BEGIN.timestamp()) // 60


@pytest.fixture
def requests():
    """Return what makes requests of four flights: two of Newark within three hours, one of Kennedy, one a week on."""
    columns = {name: np.ones(4) for name in NUMERIC}
    columns |= {name: np.full(4, "AA", object) for name in ("carrier", "dest")}
    columns |= {"hour": np.array([6, 7, 22, 9]), "weekday": np.zeros(4, int), LABEL: np.array([1.0, 0.0, 1.0, 0.0])}
    columns["origin"] = np.array(["EWR", "EWR", "JFK", "LGA"], object)
    assert {*CATEGORICAL, *NUMERIC} < set(columns)
    times = (MINUTE + np.array([10, 100, 50, 7 * 24 * 60 + 5])).astype("datetime64[m]")
    return lambda fault_week: asked(columns, times, Flights().signature(), label=LABEL, fault_week=fault_week)


def test_an_airport_asks_for_three_hours_of_flights_at_once(requests):
    """At the moment of the last of them, in the order of time."""
    found = requests(None)
    assert [(each.at - BEGIN, each.week, each.labels) for each in found] == [
        (timedelta(minutes=50), 0, [1]),
        (timedelta(minutes=100), 0, [1, 0]),
        (timedelta(days=7, minutes=5), 1, [0]),
    ]
    assert [row["hour"] for row in found[1].rows] == [6, 7]


def test_a_fault_puts_the_hours_of_its_week_into_another_zone(requests):
    """Five hours later, and 22 becomes 3; the week after is as it was."""
    assert [[row["hour"] for row in each.rows] for each in requests(0)] == [[3], [11, 12], [9]]
