"""Weeks of flights as requests."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from raymlops.lifecycle.replay.flights_asked import BEGIN, asked
from raymlops.recipes.flights import Flights
from raymlops.recipes.flights_features import CATEGORICAL, LABEL, NUMERIC

MINUTE = int(BEGIN.timestamp()) // 60


@pytest.fixture
def table():
    """Return five flights: two of Newark within three hours, one of Kennedy, one that never arrived, one a week on."""
    moments = MINUTE + np.array([10, 100, 50, 60, 7 * 24 * 60 + 5])
    columns = {name: np.ones(5) for name in NUMERIC}
    columns |= {name: np.full(5, "AA", object) for name in ("carrier", "dest")}
    columns |= {"hour": np.array([6, 7, 22, 8, 9]), "weekday": np.zeros(5, int)}
    assert set(columns) | {"origin"} == {*CATEGORICAL, *NUMERIC}
    origin = np.array(["EWR", "EWR", "JFK", "EWR", "LGA"], object)
    return columns | {"origin": origin, "moment": moments, LABEL: np.array([1.0, 0.0, 1.0, np.nan, 0.0])}


def test_an_airport_asks_for_three_hours_of_flights_at_once(table):
    """At the moment of the last of them, in the order of time; what never arrived is no row."""
    found = asked(table, Flights().signature(), weeks=2, fault_week=None)
    assert [(each.at - BEGIN, each.week, each.labels) for each in found] == [
        (timedelta(minutes=50), 0, [1]),
        (timedelta(minutes=100), 0, [1, 0]),
        (timedelta(days=7, minutes=5), 1, [0]),
    ]
    assert [row["hour"] for row in found[1].rows] == [6, 7]


def test_only_the_weeks_that_are_wanted_are_asked_for(table):
    """From the first one on."""
    assert {each.week for each in asked(table, Flights().signature(), weeks=1, fault_week=None)} == {0}


def test_a_fault_puts_the_hours_of_its_week_into_another_zone(table):
    """Five hours later, and 22 becomes 3; the week after is as it was."""
    found = asked(table, Flights().signature(), weeks=2, fault_week=0)
    assert [[row["hour"] for row in each.rows] for each in found] == [[3], [11, 12], [9]]
