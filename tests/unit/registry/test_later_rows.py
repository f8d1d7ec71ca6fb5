"""Test rows that are later than training rows, on days of their own, or neither."""

from __future__ import annotations

import numpy as np
import pytest

from raymlops.bundle.trained_rows import Overlap
from raymlops.registry.later_rows import Times, later, order_of, others, whole_days


def times(*texts: str, lag_d: int = 0) -> Times:
    """Return when rows arose, and when their labels were known."""
    arose = np.array(texts, dtype="datetime64[us]")
    return Times(arose, arose + np.timedelta64(lag_d, "D"))


TRAIN = [times("2026-01-01T10:00", "2026-01-03T12:00"), times("2026-01-02T00:00")]


def test_rows_after_the_newest_training_row_pass():
    """The newest of two chunks is of 3 January, noon; a row a second later is later."""
    order = order_of(TRAIN, [times("2026-01-03T12:00:01", "2026-01-04T00:00")])

    assert (order.rows, order.early, order.newest) == (2, 0, "2026-01-03T12:00:00")
    assert later(order).passed


def test_labels_that_came_later_than_those_of_the_test_rows_are_refused():
    """The training rows' came three days after them, on the 6th; the test row is of the 4th, and known at once."""
    order = order_of([times("2026-01-03", "2026-01-04", lag_d=3)], [times("2026-01-04")])

    assert (order.early, order.shared_days, order.newest) == (1, 1, "2026-01-07T00:00:00")
    assert not later(order).passed


def test_a_row_of_the_same_time_is_refused_with_numbers():
    """One of two rows, on a day of training rows."""
    check = later(order_of(TRAIN, [times("2026-01-03T12:00", "2026-01-04T00:00")]))

    assert (check.passed, check.got) == (False, 1.0)
    assert check.detail.startswith("of 2 test rows 1 were not labelled after all training rows: their last label was")


def test_a_row_that_is_later_within_its_second_passes():
    """The labels of busy models lie closer; each one is shown as it is."""
    order = order_of(TRAIN, [times("2026-01-03T12:00:00.000001")])

    assert (order.early, order.oldest) == (0, "2026-01-03T12:00:00.000001")
    assert later(order).passed


def test_the_time_of_a_label_is_not_called_that_of_its_row():
    """Rows of the 4th and 5th are known on the 7th and 5th; the test rows arose on the 6th, one of them is known then.

    The last label is that of the older training row, and the first one of the test rows that of the younger one.
    """
    train = [times("2026-01-04", lag_d=3), times("2026-01-05")]
    check = later(order_of(train, [times("2026-01-06", lag_d=2), times("2026-01-06T06:00")]))

    assert check.detail == (
        "of 2 test rows 1 were not labelled after all training rows: their last label was known at 2026-01-07T00:00:00,"
        " the first one of the test rows at 2026-01-06T06:00:00 UTC; 0 arose on days of training rows"
    )


def test_earlier_days_that_no_training_row_is_of_pass():
    """31 December lies before all training rows, and none is of that day."""
    order = order_of(TRAIN, [times("2025-12-31T23:59")])

    assert (order.early, order.shared_days) == (1, 0)
    assert later(order).passed


def test_days_count_only_if_they_are_those_of_all_test_rows():
    """One row is on a day of its own, the other on one of training rows: neither of the two conditions holds."""
    order = order_of(TRAIN, [times("2025-12-31T00:00", "2026-01-01T23:00")])

    assert (order.early, order.shared_days) == (2, 1)
    assert not later(order).passed


@pytest.mark.parametrize(
    ("train", "test", "why"),
    [
        ([None], [times("2026-01-04")], "not all of its training rows have a time"),
        ([times("2026-01-01", "NaT")], [times("2026-01-04")], "not all of its training rows have a time"),
        (
            [Times(np.array([1.0, np.nan]), np.array([1.0, 2.0]))],
            [times("2026-01-04")],
            "not all of its training rows have a time",
        ),
        ([], [times("2026-01-04")], "its training rows are no table"),
        (TRAIN, [None], "its test rows have no time"),
        (TRAIN, [], "its test rows are no table"),
    ],
)
def test_what_has_no_time_is_refused_and_says_what_to_define(train, test, why):
    """Nothing shows that its test rows are later."""
    check = later(order_of(train, test))

    assert (check.passed, check.got) == (False, None)
    assert check.detail.startswith(f"{why}; define row_times()")


def test_a_test_row_without_a_time_counts_as_early():
    """Nobody knows that it is later."""
    order = order_of(TRAIN, [times("NaT", "2026-01-05")])

    assert (order.early, order.shared_days, order.oldest) == (1, 1, "2026-01-05T00:00:00")


def test_seconds_since_1970_are_times_too():
    """10 seconds and 20.7 seconds; what is no time of microseconds is none."""
    order = order_of([Times(*[np.array([10])] * 2)], [Times(*[np.array([20.7, np.inf, 1e30])] * 2)])

    assert (order.oldest, order.early) == ("1970-01-01T00:00:20.700000", 2)


def test_rows_that_are_training_rows_are_refused_beyond_what_chance_makes():
    """2 of 100 are, for certain: the bound is 1%, or 2%."""
    found = Overlap(2, 100)

    assert not others(found, most=0.01).passed
    assert "2 of 100 test rows that were looked up are training rows too: 2.00%" in others(found, most=0.01).detail
    assert others(found, most=0.02).passed


def test_an_estimate_that_may_be_chance_is_not_refused():
    """1 of 6 rows that lie under a sketch: .17, and for certain .002."""
    check = others(Overlap(1, 6, whole=False), most=0.01)

    assert (check.passed, check.got) == (True, pytest.approx(1 / 6))
    assert "with an error of 15.21%, for certain more than 0.17%" in check.detail


def test_rows_lie_in_whole_days_and_in_weeks_where_these_are_enough():
    """Hours of three days are three blocks whatever their order; of 56 days there are eight weeks."""
    hours = np.datetime64("2026-01-01T20", "h") + np.array([0, 30, 3, 5])
    codes, are = whole_days(hours)
    assert (codes.tolist(), are) == ([0, 2, 0, 1], "days")
    codes, are = whole_days(np.arange(56) * 86400.0)
    assert (np.bincount(codes).tolist(), are) == ([7] * 8, "weeks")
    assert whole_days(np.arange(55) * 86400, weeks=False)[0].tolist() == list(range(55))
    assert whole_days(np.array(["2026-01-01", "NaT"], "datetime64[s]"))[0].tolist() == [1, 0]
