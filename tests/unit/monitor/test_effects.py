"""Effects of a change, by hand."""

import math

import numpy as np
import pytest

from raymlops.monitor.effects import jensen_shannon, new_bins, quantiles, vanished_bins


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


def test_categories_come_and_go():
    """Of 1,000 rows 2% were expected and none came; where one was expected, chance may leave it out."""
    before, after = np.array([9790, 200, 10, 0]), np.array([990, 0, 0, 10])
    assert new_bins(before, after) == (3,)
    assert vanished_bins(before, after) == (1,)
    assert vanished_bins(np.array([0, 0]), np.array([0, 0])) == ()
