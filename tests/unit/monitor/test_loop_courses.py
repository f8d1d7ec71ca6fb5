"""The replay of flights: what is known when, how a world is reversed, and how courses are compared."""

from __future__ import annotations

import numpy as np
import pytest
from courses_figure import draw
from flight_weeks import BEGIN, LATE, WEEK, FlightWeeks, end_of, mirrored, sums
from paired_weeks import difference, whole
from recovery import learnt, weeks_to

from raymlops.recipes.flights_features import CATEGORICAL, LABEL, NUMERIC


@pytest.fixture
def world():
    """Return three flights of the first week, one of them without an arrival, and one of the second."""
    moments = BEGIN + np.array([30, 90, 100, WEEK + 5])
    table = {name: np.zeros(4) for name in (*CATEGORICAL, *NUMERIC)}
    table |= {"origin": np.array(["EWR", "JFK", "JFK", "LGA"], object), "moment": moments}
    return FlightWeeks(table | {LABEL: np.array([1.0, 0.0, np.nan, 1.0])})


def test_a_week_has_the_flights_that_arrived(world):
    """Two of the first one, one of the second."""
    assert [world.week(week) for week in (0, 1)] == [slice(0, 2), slice(2, 3)]


def test_labels_are_a_week_late(world):
    """At the end of the second week those of the first are known, and not an hour before."""
    known = world.labelled(BEGIN, end_of(0), now=end_of(1))
    assert known[LABEL].tolist() == [1.0, 0.0]
    with pytest.raises(AssertionError, match="not known"):
        world.labelled(BEGIN, end_of(0), now=end_of(0) + LATE - 60)


def test_a_reversed_world_gives_each_flight_the_label_of_the_mirrored_rank():
    """The largest has that of the smallest; ties are drawn, and without a value it keeps its own."""
    labels, by = np.array([1.0, 0.0, 0.0, 1.0]), np.array([10.0, 30.0, np.nan, 20.0])
    assert mirrored(labels, by=by, rng=np.random.default_rng(0)).tolist() == [0.0, 1.0, 0.0, 1.0]
    assert mirrored(labels, by=np.ones(4), rng=np.random.default_rng(0)).sum() == 2


def test_only_weeks_from_the_shift_on_are_reversed(world):
    """Inputs are as they were, and the world before it is left alone."""
    world.columns["temp"] = np.array([1.0, 2.0, 3.0])
    later = world.reversed_from(0, column="temp", seed=0)
    assert later.labels.tolist() == [0.0, 1.0, 1.0]
    assert world.reversed_from(1, column="temp", seed=0).labels.tolist() == world.labels.tolist() == [1.0, 0.0, 1.0]


def test_sums_give_the_metrics():
    """Of .8 to a late and .4 to a punctual flight: log loss (ln 1.25 + ln 5/3) / 2, Brier (.04 + .16) / 2, AUC 1."""
    week = sums(np.array([1.0, 0.0]), np.array([0.8, 0.4]))
    found = whole([week, week])
    assert found["loss"] == pytest.approx((np.log(1.25) + np.log(5 / 3)) / 2)
    assert (found["brier"], found["auc"]) == pytest.approx((0.1, 1.0))


def test_the_difference_of_courses_is_bounded_by_whole_weeks():
    """One that answers .8 where the other answers .7 to late flights alone is better by ln(8/7) in every week."""
    weeks = [[sums(np.array([1.0, 1.0]), np.full(2, answer))] * 10 for answer in (0.8, 0.7)]
    found = difference(*weeks)
    assert found["loss"] == pytest.approx((-np.log(8 / 7),) * 3)
    assert found["auc"] == (0.0, 0.0, 0.0)


def test_weeks_to_recovery_are_counted_from_the_change():
    """From .4, of one that never learns, to .8: .6 is half of the way, reached for two weeks in a row in the third."""
    found = learnt([0.4, 0.6, 0.5, 0.6, 0.7], frozen=[0.4] * 5, known=[0.8] * 5)
    assert found == pytest.approx([0, 0.5, 0.25, 0.5, 0.75])
    assert weeks_to(0.5, np.round(found, 6)) == 3
    assert weeks_to(0.8, found) is None


def test_a_figure_shows_each_course_and_event():
    """A line each, and a mark where something happened; names are escaped."""
    svg = draw("a < b", [("frozen", [1.0, 2.0], []), ("loop", [1.0, 1.5], [(1, "promoted", "")])], shift=1)
    assert svg.startswith("<svg")
    assert (svg.count("<polyline"), svg.count("▲")) == (2, 1)
    assert "a &lt; b" in svg
