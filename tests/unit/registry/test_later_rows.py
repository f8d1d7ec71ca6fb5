"""Test rows that are later than training rows, on days of their own, or neither."""

from __future__ import annotations

import numpy as np
import pytest

from raymlops.bundle.trained_rows import Overlap
from raymlops.registry.later_rows import later, order_of, others


def times(*texts: str) -> np.ndarray:
    return np.array(texts, dtype="datetime64[us]")


TRAIN = [times("2026-01-01T10:00", "2026-01-03T12:00"), times("2026-01-02T00:00")]


def test_rows_after_the_newest_training_row_pass():
    """The newest of two chunks is of 3 January, noon; a row a second later is later."""
    order = order_of(TRAIN, [times("2026-01-03T12:00:01", "2026-01-04T00:00")])

    assert (order.rows, order.early, order.newest) == (2, 0, "2026-01-03T12:00:00")
    assert later(order).passed


def test_a_row_of_the_same_second_is_refused_with_numbers():
    """One of two rows, on a day of training rows."""
    check = later(order_of(TRAIN, [times("2026-01-03T12:00", "2026-01-04T00:00")]))

    assert (check.passed, check.got) == (False, 1.0)
    assert "of 2 test rows 1 are not after the training rows; the newest training row is of 2026-01-03T12:00" in check.detail


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
        ([np.array([1.0, np.nan])], [times("2026-01-04")], "not all of its training rows have a time"),
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
    """10 seconds and 20.7 seconds, which are those of 20."""
    assert order_of([np.array([10])], [np.array([20.7])]).oldest == "1970-01-01T00:00:20"


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
