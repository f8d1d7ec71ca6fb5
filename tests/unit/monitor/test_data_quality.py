"""Shares of missing values, of values out of the reference's range and of new categories, by profiles."""

import numpy as np
import pytest

from raymlops.monitor.data_quality import Shares, column_quality, named
from raymlops.profiles.count import profile_of
from raymlops.profiles.learn import Learner


def layout_of(columns, *, rows):
    learner = Learner()
    learner.add(columns, rows=rows)
    return learner.layout()


@pytest.fixture
def known():
    """Return 10,000 rows of train: a number from 0 to 1, a text of two, a time."""
    rng = np.random.default_rng(1)
    return {
        "x": rng.random(10_000),
        "carrier": np.array(["AA", "UA"] * 5_000, object),
        "at": np.datetime64("2026-01-01") + np.arange(10_000).astype("timedelta64[m]"),
    }


def test_each_share_is_of_the_rows_that_hold_a_column(known):
    """Of 1,000 rows: 100 missing, 50 beyond either end and 10 infinite; 200 of an unknown carrier; times move on."""
    layout = layout_of(known, rows=10_000)
    x = np.full(1_000, 0.5)
    x[:100], x[100:125], x[125:150], x[150:160] = np.nan, -3.0, 3.0, np.inf
    carrier = np.array(["AA"] * 790 + ["XX"] * 200 + [None] * 10, object)
    window = {"x": x, "carrier": carrier, "at": known["at"][:1_000] + np.timedelta64(90, "D")}
    found = {each.column: each for each in column_quality(profile_of(known, layout), profile_of(window, layout))}
    assert found["x"].nulls.after == 0.1
    assert found["x"].out_of_range.after == 0.06
    assert found["x"].out_of_range.before < 0.01
    assert found["carrier"].new_categories == Shares(0.0, 0.2, 0.0)
    assert found["carrier"].nulls.after == 0.01
    assert found["at"].out_of_range is None


def test_other_rows_of_the_same_distribution_rise_above_nothing(known):
    """What is beyond train's outermost bins in small samples is chance: no share of 200 columns rises."""
    rng = np.random.default_rng(2)
    columns = {f"c{at}": rng.normal(size=400) for at in range(200)}
    layout = layout_of(columns, rows=400)
    others = {name: rng.normal(size=300) for name in columns}
    found = column_quality(profile_of(columns, layout), profile_of(others, layout))
    assert max(each.out_of_range.risen for each in found) <= 0.01


def test_a_column_that_was_not_counted_is_left_out(known):
    """Such as a redacted one; profiles on other layouts are refused."""
    layout = layout_of(known, rows=10_000)
    window = profile_of({"x": known["x"][:100]}, layout, rows=100)
    assert [each.column for each in column_quality(profile_of(known, layout), window)] == ["x"]
    with pytest.raises(ValueError, match="different layouts"):
        column_quality(profile_of(known, layout), profile_of(known, layout_of({"x": known["x"]}, rows=10_000)))


def test_few_of_many_are_named():
    """The largest first."""
    assert named([("a", 0.1), ("b", 0.5)]) == "b 50.0%, a 10.0%"
    assert named((str(at), at / 100) for at in range(8)).endswith("3 3.0% and 3 more")


def test_rare_texts_rise_by_no_more_than_the_choice_of_categories_explains():
    """Of 1,000 equally frequent shops half are categories by luck, with 5% of the rows too many."""
    rng = np.random.default_rng(5)
    shops = np.array([f"s{at:04d}" for at in range(1_000)], object)
    columns, window = ({"shop": shops[rng.integers(0, 1_000, rows)]} for rows in (60_000, 20_000))
    layout = layout_of(columns, rows=60_000)
    found = column_quality(profile_of(columns, layout), profile_of(window, layout))[0]
    assert found.new_categories.after > found.new_categories.before + 0.02
    assert found.new_categories.risen == 0
