"""The replay of flights: what is known when, how a world is reversed, and how courses are compared."""

from __future__ import annotations

import numpy as np
import pytest
from courses_figure import draw
from flight_weeks import BEGIN, LATE, WEEK, FlightWeeks, end_of, mirrored, moved, sums
from paired_weeks import difference, whole
from recovery import damage, weeks_to

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


def test_a_column_is_mirrored_in_its_own_values():
    """The smallest for the largest; what is missing stays so."""
    values = np.array([1.0, 2.0, 3.0, np.nan, 50.0])
    np.testing.assert_array_equal(mirrored(values, among=values), [50.0, 3.0, 2.0, np.nan, 1.0])


def test_labels_are_moved_by_as_few_as_it_takes():
    """From a chance of .2 to .4 a quarter of those who are not late become so, (.4 - .2) / .8; nobody else changes."""
    rng = np.random.default_rng(0)
    labels = (rng.random(100_000) < 0.2).astype(float)
    late = moved(labels, np.full(100_000, 0.2), np.full(100_000, 0.4), rng=rng)
    assert late[labels == 1].all()
    assert late[labels == 0].mean() == pytest.approx(0.25, abs=0.01)
    back = moved(labels, np.full(100_000, 0.2), np.full(100_000, 0.1), rng=rng)
    assert not back[labels == 0].any()
    assert back[labels == 1].mean() == pytest.approx(0.5, abs=0.02)


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
    """It costs 1, and one who knows of it .5; 80% are regained at .2 for two weeks in a row, which is the third."""
    without, floor = [0.6] * 7, ([0.5, 0.5] + [1.0] * 5, [0.5] * 7)
    worst = damage(([0.6, 0.6] + [2.1] * 5, without), floor=floor, since=2)
    ours = damage(([0.6, 0.6, 2.1, 1.2, 2.1, 1.25, 1.15], without), floor=floor, since=2)
    assert worst == pytest.approx(np.ones(5))
    assert ours == pytest.approx([1.0, 0.1, 1.0, 0.15, 0.05])
    assert weeks_to(0.8, ours, worst) == 3
    assert weeks_to(0.99, ours, worst) is None


def test_a_figure_shows_each_course_and_event():
    """A line each, and a mark where something happened; names are escaped."""
    svg = draw("a < b", [("frozen", [1.0, 2.0], []), ("loop", [1.0, 1.5], [(1, "promoted", "")])], shift=1)
    assert svg.startswith("<svg")
    assert (svg.count("<polyline"), svg.count("▲")) == (2, 1)
    assert "a &lt; b" in svg
