"""Effects of a change, by hand."""

import math

import numpy as np
import pytest

from raymlops.monitor.effects import (
    category_shares,
    histogram,
    in_words,
    jensen_shannon,
    known,
    new_bins,
    outside,
    quantiles,
    vanished_bins,
)


def test_the_distance_of_two_histograms():
    """(1, 0) and (1/2, 1/2), middle (3/4, 1/4): (log2 4/3 + log2(2/3) / 2 + log2(2) / 2) / 2 = .3113, root .5579."""
    assert jensen_shannon(np.array([8, 0]), np.array([3, 3])) == pytest.approx(0.5579, abs=1e-4)


def test_distances_go_from_nothing_to_one():
    """Equal shares are 0, whatever the rows; nothing in common is 1; an empty one is compared with nothing."""
    assert jensen_shannon(np.array([1, 3]), np.array([10, 30])) == pytest.approx(0, abs=1e-8)
    assert jensen_shannon(np.array([5, 0]), np.array([0, 2])) == pytest.approx(1)
    assert jensen_shannon(np.array([5, 5]), np.array([0, 0])) == 0


def test_quantiles_lie_evenly_within_a_bin():
    """10 rows in [0, 10), 10 in [10, 30): the median is 10, .25 is 5, .75 is 20."""
    found = quantiles(np.array([10, 10]), np.array([0.0, 10.0, 30.0]), at=(0.25, 0.5, 0.75))
    assert found == pytest.approx((5, 10, 20))


def test_a_tail_counts_as_its_finite_edge():
    """Nothing is known beyond it; empty bins between are passed over."""
    edges = np.array([-np.inf, 1.0, 2.0, 3.0, np.inf])
    assert quantiles(np.array([5, 0, 0, 5]), edges, at=(0.1, 0.9)) == (1.0, 3.0)
    assert all(math.isnan(one) for one in quantiles(np.zeros(4, int), edges))


def test_a_quantile_beyond_the_edges_is_not_known():
    """Of 10 rows 6 are below 1: the median too; .75 is in a bin; .95 is above 3 with the last one."""
    edges, counts = np.array([-np.inf, 1.0, 2.0, 3.0, np.inf]), np.array([6, 2, 1, 1])
    beyond = outside(counts, edges)
    assert beyond == pytest.approx((0.6, 0.1))
    found = known(quantiles(counts, edges), beyond)
    assert [math.isnan(one) for one in found] == [True, True, True, False, True]
    assert in_words(found, (1.0, 3.0), beyond) == ("below 1", "below 1", "below 1", "1.75", "above 3")
    assert outside(counts, np.arange(5.0)) == (0, 0)


def test_what_is_empty_has_no_quantile():
    """All of a column may be missing, and a verdict of an earlier release may hold no more."""
    edges = np.array([-np.inf, 1.0, np.inf])
    beyond = outside(np.zeros(2, int), edges)
    assert beyond == (0, 0)
    assert in_words(known(quantiles(np.zeros(2, int), edges), beyond), (1.0, 1.0), beyond) == ("none",) * 5
    assert in_words([None] * 5, (), ()) == ("none",) * 5


def test_categories_come_and_go():
    """Of 1,000 rows 2% were expected and none came; where one was expected, chance may leave it out."""
    before, after = np.array([9790, 200, 10, 0]), np.array([990, 0, 0, 10])
    assert new_bins(before, after) == (3,)
    assert vanished_bins(before, after) == (1,)
    assert vanished_bins(np.array([0, 0]), np.array([0, 0])) == ()


def test_a_histogram_has_bars_of_equal_width_over_both():
    """10 rows in [0, 12), then all in [12, 24): from about 0 to 24, and half of the bars hold nothing of either."""
    found = histogram(np.array([10, 0]), np.array([0, 10]), np.array([0.0, 12.0, 24.0]))
    assert found.edges == pytest.approx(np.linspace(0.06, 23.94, 25), abs=1e-4)
    assert sum(found.before) == pytest.approx(1, abs=1e-3)
    assert (sum(found.before[:12]), sum(found.after[:12])) == pytest.approx((1, 0), abs=1e-3)
    assert found.before[3] == pytest.approx(23.88 / 24 / 12, abs=1e-3)


def test_one_value_far_off_leaves_more_than_one_bar():
    """Half of a percent at a million is in the outer bar: bars go to 4 interquartile ranges of 50 beyond 75."""
    edges = np.append(np.arange(101.0), 1e6)
    found = histogram(np.append(np.full(100, 10), 10), np.append(np.full(100, 1), 0), edges)
    assert found.edges[-1] == pytest.approx(75.75 + 4 * 50.5, abs=1)
    assert found.before[-1] > 0.009
    assert sum(share > 0 for share in found.before) > 5


def test_what_has_no_width_has_no_histogram():
    """A constant, a column without a value, and tails around one edge."""
    edges = np.array([-np.inf, 1.0, np.inf])
    assert histogram(np.array([5, 5]), np.array([2, 8]), edges) is None
    assert histogram(np.array([5, 5]), np.array([0, 0]), np.arange(3.0)) is None
    assert category_shares(np.array([0, 0]), np.array([1, 0]), ("a", "b")) is None


def test_shares_of_the_commonest_categories_before_or_after():
    """Of 14, 11 and one bar for the others; the one that is new is among the first. What nobody had has no bar."""
    before = np.array([0, *range(14, 1, -1), 0])
    after = before.copy()
    after[0] = 100
    labels = tuple("NABCDEFGHIJKLMZ")
    found = category_shares(before, after, labels)
    assert found.labels == ("N", *"ABCDEFGHIJ", "3 others")
    assert (found.before[0], found.after[0]) == (0, round(100 / 204, 4))
    assert sum(found.before) == pytest.approx(1, abs=1e-3)
    assert category_shares(before[:3], after[:3], labels[:3]).labels == ("N", "A", "B")
