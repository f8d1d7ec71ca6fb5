"""Which rows are drawn of a table whose rows have a period."""

from __future__ import annotations

import numpy as np
import pytest

from raymlops.profiles.drawn_rows import drawn, drawn_of
from raymlops.profiles.learn import Learner
from raymlops.profiles.reference import Chunk, reference_of

SHOPS = np.array([f"S{number:02d}" for number in range(40)], dtype=object)


@pytest.mark.parametrize("period", [2, 7, 40, 168, 4096])
def test_each_phase_of_a_period_has_its_share(period):
    """Of 1,048,576 rows 8,192 are drawn, one of each 128: as many of each phase as by chance, and never more even."""
    rows, most = 1 << 20, 1 << 13
    for numbers in (drawn(rows, most=most), drawn_of(np.arange(most), halvings=7)):
        expected = most / period
        counts = np.bincount(numbers % period, minlength=period)
        chi2 = ((counts - expected) ** 2 / expected).sum()
        assert chi2 < period - 1 + 4 * np.sqrt(2 * period)


def test_one_row_of_each_stretch_is_drawn_in_order():
    """10 rows in 4 stretches of 2 or 3; all of fewer rows than may be drawn; none of none."""
    starts = np.array([0, 2, 5, 7, 10])
    numbers = drawn(10, most=4)
    assert (numbers >= starts[:-1]).all()
    assert (numbers < starts[1:]).all()
    assert drawn(3, most=4).tolist() == [0, 1, 2]
    assert drawn(0, most=4).tolist() == []
    assert drawn_of(np.arange(5), halvings=0).tolist() == [0, 1, 2, 3, 4]


def test_rows_drawn_of_long_stretches_are_drawn_of_short_ones_too():
    few, more = drawn_of(np.arange(64), halvings=5), drawn_of(np.arange(256), halvings=3)
    assert (few >> 5).tolist() == list(range(64))
    assert {*few.tolist()} < {*more.tolist()}


def test_all_categories_of_a_table_in_natural_order_are_known():
    """40 shops in turn, 104 weeks of hours: each is a category of 1 in 40 rows, within 3 standard deviations."""
    hours = 104 * 168
    shop = np.tile(SHOPS, hours)
    times = np.repeat(np.arange(hours) * 3600.0, 40)
    found = reference_of(lambda: [Chunk({"shop": shop}, len(shop), times)], rows=len(shop))
    assert found.layout.series[0].categories == tuple(SHOPS)
    learner = Learner()
    learner.add({"shop": np.tile(np.arange(40.0), hours)}, rows=len(shop))
    sample = learner.values("shop")
    counts = np.bincount(sample.astype(int), minlength=40)
    assert abs(counts - len(sample) / 40).max() < 3.5 * np.sqrt(len(sample) / 40)


def test_a_sample_does_not_depend_on_how_rows_arrive():
    """250,000 rows at once, in three chunks, and in chunks of 7,001."""
    values = np.arange(250_000.0)
    found = []
    for size in (250_000, 100_000, 7_001):
        learner = Learner(sample_rows=1000)
        for start in range(0, len(values), size):
            chunk = values[start : start + size]
            learner.add({"x": chunk}, rows=len(chunk))
        found.append(learner.values("x").tolist())
    assert found[0] == found[1] == found[2]
    assert 1000 <= len(found[0]) <= 2000
