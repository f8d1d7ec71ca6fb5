"""What moved, hour by hour, by counts of hours that are known."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from raymlops.lifecycle.watch.hours import MOST_COLUMNS, SPAN, Hours, hours_before
from raymlops.lifecycle.watch.window_drift import WindowDrift
from raymlops.monitor.drift import RARER, ColumnDrift, DriftVerdict
from raymlops.predictions.hourly import HourProfile
from raymlops.profiles.count import profile_of
from raymlops.profiles.layout import Layout, Series

START = datetime(2026, 1, 5, tzinfo=UTC)
HOUR = timedelta(hours=1)
LAYOUT = Layout(
    (
        Series("number", "number", np.arange(0.0, 101.0)),
        Series("code", "category", categories=("AA", "UA")),
        Series("quiet", "number", np.arange(3.0)),
    )
)


def window(*moved):
    columns = tuple(
        ColumnDrift(name, what, 9.0, None, 0.001, True, (), 0.3, (0.0, 0.0), (), (), (), None) for name, what in moved
    )
    verdict = DriftVerdict("warn", "unlike", 500, 30, 28.5, 0.03, None, columns)
    return WindowDrift("inputs", "drift", "training", START, START + 2 * HOUR, 500, verdict)


def hour(at, *, version=3, numbers=(), codes=()):
    found = {"number": np.array(numbers, float), "code": np.array(codes, object), "quiet": np.zeros(len(numbers))}
    return HourProfile(START + at * HOUR, version, {"features": profile_of(found, LAYOUT)})


def test_each_hour_has_what_moved_over_all_versions():
    """Quartiles of numbers, the share of the category that moved, and what is missing, in the verdict's order."""
    hours = Hours(window(("code", "share of UA"), ("number", "location")), LAYOUT, version=None)
    hours.add(hour(0, numbers=range(40), codes=["AA"] * 30 + ["UA"] * 10))
    hours.add(hour(1, numbers=range(50, 70), codes=["UA"] * 20))
    hours.add(hour(1, version=4, numbers=range(70, 90), codes=["AA"] * 15 + ["UA"] * 5))
    code, number = hours.columns()
    assert (code.column, code.what, code.rows) == ("code", "share of UA", (40, 40))
    assert (code.starts, code.values) == ((START, START + HOUR), ((0.25,), (0.625,)))
    assert number.what == "quartiles"
    assert number.values[1] == pytest.approx((60, 70, 80), abs=1)


def test_outputs_are_of_one_version_and_missing_ones_are_told_as_such():
    missing = Hours(window(("number", "nulls")), LAYOUT, version=3)
    missing.add(hour(0, numbers=[*range(15), *[np.nan] * 5], codes=["AA"] * 20))
    missing.add(hour(1, version=4, numbers=range(30), codes=["AA"] * 30))
    (found,) = missing.columns()
    assert (found.what, found.starts, found.values) == ("missing", (START,), ((0.25,),))


def test_hours_of_few_rows_are_left_out():
    """Of fewer than 20 nothing is told."""
    hours = Hours(window(("code", "share of all other values")), LAYOUT, version=None)
    hours.add(hour(0, numbers=range(19), codes=["AA"] * 19))
    assert hours.columns() == ()
    hours.add(hour(1, numbers=range(20), codes=["AA"] * 20))
    (found,) = hours.columns()
    assert (found.starts, found.values) == ((START + HOUR,), ((0.0,),))


def test_a_week_is_read_and_columns_are_few():
    """Of 30 that moved, 8; pairs of columns and those that the layout has not are none."""
    assert hours_before(window()) == (START + 2 * HOUR - SPAN, START + 2 * HOUR)
    names = [(f"n{at}", "location") for at in range(30)]
    layout = Layout(tuple(Series(name, "number", np.arange(3.0)) for name, _ in names))
    hours = Hours(window(("a and b", "correlation +0.10 -> +0.50"), *names), layout, version=None)
    found = {name: np.ones(20) for name, _ in names}
    hours.add(HourProfile(START, 3, {"features": profile_of(found, layout)}))
    assert len(hours.columns()) == MOST_COLUMNS - 1


def test_where_luck_chose_the_categories_the_rarer_ones_count_with_all_that_are_none():
    """Twelve of 10 rows, one of 5, and 75 of no category, which are no common one: 80 of 200."""
    names = tuple(f"s{at:02d}" for at in range(13))
    layout = Layout((Series("shop", "category", categories=names),))
    hours = Hours(window(("shop", RARER)), layout, version=None)
    shops = np.array([*np.repeat(names[:12], 10), *[names[12]] * 5, *["new"] * 75], object)
    hours.add(HourProfile(START, 3, {"features": profile_of({"shop": shops}, layout)}))
    (found,) = hours.columns()
    assert (found.what, found.values) == (RARER, ((0.4,),))
