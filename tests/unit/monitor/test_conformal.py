"""Ranks of windows among own windows, by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm, t

from raymlops.monitor.conformal import Own, as_unrelated, rank_one, rank_two


def own(*values, phases=None, kinds=None, lag=1, slots=None):
    found = np.array(values, dtype=float)
    found = found[:, None] if found.ndim == 1 else found
    number = found.shape[1]
    phases = np.zeros(len(found), int) if phases is None else np.array(phases)
    kinds = np.zeros(number, int) if kinds is None else np.array(kinds)
    return Own(found, kinds, np.full(number, 1e-6), phases, lag, None if slots is None else np.array(slots))


def test_one_window_is_measured_by_the_others():
    """Own windows 1, 2, 3: mean 2, deviation 1, and 8 is 6 / sqrt(1 + 1/3) = 5.196 off, with 2 degrees of freedom."""
    found = rank_one(own(1, 2, 3), np.array([8.0]))
    assert found.distances == pytest.approx([6 / math.sqrt(4 / 3)])
    assert found.degrees == pytest.approx([2])
    assert found.p == pytest.approx(1 / 4)


def test_a_p_value_of_student_is_that_of_two_sides():
    """t = 5.196 with 2 degrees of freedom: 1 - t / sqrt(t^2 + 2) = .0351."""
    assert rank_one(own(1, 2, 3), np.array([8.0])).p_values() == pytest.approx([1 - 5.196152 / math.sqrt(29)], abs=1e-5)


@pytest.mark.parametrize("columns", [1, 7])
def test_of_windows_each_judged_by_the_others_as_many_are_unlike_as_the_level_says(columns):
    """Of 40 windows exactly 2 have p <= .05, whatever they are: that is what makes the rank exact."""
    values = np.random.default_rng(1).standard_t(2, (40, columns))
    p = [rank_one(own(*np.delete(values, at, axis=0)), values[at]).p for at in range(40)]
    assert sum(one <= 0.05 for one in p) == 2
    assert sorted(p) == pytest.approx(np.arange(1, 41) / 40)


def test_of_pairs_each_judged_by_the_others_as_many_are_unlike_as_the_level_says():
    """Of the 66 pairs of 12 windows exactly 3 have p <= .05: 3.3 are allowed."""
    values = np.random.default_rng(2).standard_normal((12, 3))
    p = []
    for i in range(12):
        for j in range(i + 1, 12):
            rest = np.delete(values, [i, j], axis=0)
            p.append(rank_two(own(*rest), values[[i, j]]).p)
    assert sum(one <= 0.05 for one in p) == 3


def test_two_windows_reach_what_the_nearer_one_reaches():
    """Own windows 1, 2, 3; 8 and 9 are 6 and 7 off, over sqrt(4 / 3): both reach 5.196."""
    found = rank_two(own(1, 2, 3), np.array([[8.0], [9.0]]))
    assert found.distances == pytest.approx([6 / math.sqrt(4 / 3)])
    assert found.p == pytest.approx(1 / 10)


def test_two_windows_in_opposite_directions_reach_nothing():
    """One above and one below is noise, not a move."""
    assert rank_two(own(1, 2, 3), np.array([[8.0], [-4.0]])).distances == pytest.approx([0])


def test_one_odd_window_is_not_two_running():
    """100 and then 2, which is the mean."""
    assert rank_two(own(1, 2, 3), np.array([[100.0], [2.0]])).distances == pytest.approx([0])


def test_phases_are_compared_with_their_own():
    """Days 1, 2, 3 and nights 11, 12, 13: a night of 12 is as ever, and a day of 12 is 10 / sqrt(1 + 1/3) off.

    Their deviation around their own means is 1, with 4 degrees of freedom.
    """
    mixed = own(1, 11, 2, 12, 3, 13, phases=[0, 1, 0, 1, 0, 1])
    assert rank_one(mixed, np.array([12.0]), phase=1).distances == pytest.approx([0])
    day = rank_one(mixed, np.array([12.0]), phase=0)
    assert day.distances == pytest.approx([10 / math.sqrt(4 / 3)])
    assert day.degrees == pytest.approx([4])


def test_two_windows_of_unlike_phases_are_each_compared_with_their_own():
    """A day of 7 and a night of 17, 5 more than their means each, over sqrt(4 / 3)."""
    mixed = own(1, 11, 2, 12, 3, 13, phases=[0, 1, 0, 1, 0, 1])
    found = rank_two(mixed, np.array([[7.0], [17.0]]), phases=(0, 1))
    assert found.distances == pytest.approx([5 / math.sqrt(4 / 3)])


def test_what_two_reach_is_the_least_of_what_single_windows_do():
    """Two windows of one phase left out: the same as each by itself among the others, apart from nothing."""
    rng = np.random.default_rng(3)
    values, two = rng.standard_normal((9, 2)), rng.standard_normal((2, 2)) + 4
    alone = [rank_one(own(*values), one).distances for one in two]
    assert rank_two(own(*values), two).distances == pytest.approx(np.minimum(*alone))


def test_windows_nearer_than_a_day_are_no_pair_of_days():
    """Three days of two windows and two judged ones, a day apart: of 28 pairs 6 are of windows that follow each other.

    Of the same windows a week apart each all 28 are ranked.
    """
    values, two = (1, 2, 3, 1, 2, 3), np.array([[9.0], [9.0]])
    assert rank_two(own(*values, lag=2), two).p == pytest.approx(1 / 22)
    assert rank_two(own(*values, lag=2, slots=range(-84, 0, 14)), two).p == pytest.approx(1 / 28)


def test_a_window_is_measured_by_those_of_other_days():
    """Days of two windows, 0 and 0, 2 and 2, 4 and 10: what is judged has no other window of its day beside it.

    10 is 9 off the mean of 0 and 2. Without it and the 4 of its day, 0, 2 and the judged 2 have a sum of squares of 8/3
    around their mean, 0 and 2 of 2, with 3 degrees of freedom: 14/9. So it is 9 / sqrt(14/9 * 3/2) = 5.892 off.
    """
    days = own(0, 0, 2, 2, 4, 10, phases=[0, 1] * 3, lag=2, slots=[-30, -29, -20, -19, -10, -9])
    assert rank_one(days, np.array([2.0])).others[0] == pytest.approx(5.892, abs=1e-3)
    pair = rank_two(days, np.array([[2.0], [2.0]]), phases=(0, 0))
    assert len(pair.others) + 1 == 28 - 3


def test_a_distance_is_critical_exactly_where_the_rank_is():
    """Whatever scores more has a p-value of at most the level; with too few windows nothing can."""
    values = np.random.default_rng(4).standard_normal((39, 2))
    for shift in np.linspace(0, 6, 25):
        found = rank_one(own(*values), np.full(2, shift))
        assert (np.abs(found.distances).max() > found.critical(0.05)) == (found.p <= 0.05)
    assert rank_one(own(1, 2, 3), np.array([8.0])).critical(0.05) == math.inf


def test_unrelated_windows_keep_their_distance():
    """With correlation 0 there is nothing to correct, near or far."""
    distances = np.array([0.5, 2.0, 4.9, 9.0])
    assert as_unrelated(distances, 0.0) == pytest.approx(distances, rel=1e-3)


def test_related_windows_count_as_far_as_is_as_rare():
    """Correlation .6, distance 2: the probability that both exceed it is scipy's, and its root is one window's."""
    both = multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]]).cdf([-2, -2])
    assert as_unrelated(np.array([2.0]), 0.6) == pytest.approx([-norm.ppf(math.sqrt(both))], abs=1e-4)


def test_windows_that_say_the_same_count_as_one():
    """Correlation .9999: .05 is exceeded by both in .05, which two unrelated ones do at .2236 each, 0.760."""
    assert as_unrelated(np.array([1.6449]), 0.9999) == pytest.approx([0.760], abs=0.02)


def test_the_correlation_of_windows_is_found():
    """Of 400 AR(1) windows with .5; of unrelated ones none; of ones that repeat after four, at lag 4."""
    rng = np.random.default_rng(5)
    noise = rng.standard_normal((400, 30))
    related = noise.copy()
    for at in range(1, 400):
        related[at] = 0.5 * related[at - 1] + math.sqrt(0.75) * noise[at]
    assert own(*related).correlation() == pytest.approx(0.5, abs=0.05)
    assert own(*noise).correlation() == pytest.approx(0.0, abs=0.05)
    repeated = np.tile(rng.standard_normal((4, 30)), (100, 1))
    assert own(*repeated).correlation(4).min() > 0.95


def test_a_column_that_moves_alone_keeps_its_correlation():
    """One AR(.8) column among 39 unrelated ones, 60 windows: at least .8 less two standard errors of .077."""
    noise = np.random.default_rng(5).standard_normal((60, 40))
    for at in range(1, 60):
        noise[at, 0] = 0.8 * noise[at - 1, 0] + 0.6 * noise[at, 0]
    assert own(*noise).correlation()[0] > 0.64


def test_shapes_move_with_the_location_of_their_column():
    """A location with correlation .9 and a scale with none: both have that of their sums of squares, 400 to 1."""
    rng = np.random.default_rng(5)
    values = rng.standard_normal((60, 2)) / [1, 20]
    for at in range(1, 60):
        values[at, 0] = 0.9 * values[at - 1, 0] + 0.44 * values[at, 0]
    found = replace(own(*values), columns=np.zeros(2, np.int64)).correlation()
    assert found[0] == found[1] > 0.6


def test_few_related_windows_tell_a_variance_badly():
    """60 of correlation .6 are worth 12, taken to be .683 and 11.3: what Student's t of 10.3 degrees says, of 59."""
    tail = t.sf(3.0, 60 * (1 - 0.6826) / 1.6826 - 1)
    assert as_unrelated(np.array([3.0]), 0.6, windows=60) == pytest.approx(
        as_unrelated(np.array([t.isf(tail, 59)]), 0.6826), abs=1e-3
    )


def test_many_pairs_are_drawn():
    """100 own windows have 5,151 pairs; 1,000 of them are ranked, the last two among them."""
    values = np.random.default_rng(6).standard_normal((100, 2))
    assert rank_two(own(*values), np.full((2, 2), 9.0)).p == pytest.approx(1 / 1000)
