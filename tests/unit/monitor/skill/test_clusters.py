from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from raymlops.monitor.skill.clusters import Estimate, Moments, by_cluster, pseudo_values


def test_rows_are_summed_by_request():
    """Request 3 has a row of 2, twice; request 7 has rows of 1 and 3."""
    totals, weights = by_cluster([7, 3, 7], [1.0, 2.0, 3.0], [1, 2, 1])
    assert totals.tolist() == [4, 4]
    assert weights.tolist() == [2, 2]


def test_requests_of_one_row_have_the_mean_and_its_usual_error():
    """1, 2, 6: mean 3, squares 4 + 1 + 9 = 14 by 2 degrees and 3 rows; cubes -8 - 1 + 27 = 18, of which 3 / 7."""
    found = Moments.of([1.0, 2.0, 6.0]).estimate()
    assert found.value == 3
    assert found.variance == pytest.approx(14 / 2 / 3)
    assert found.third == pytest.approx(18 * 3 / 2 / 9 * 3 / 7)
    assert found.degrees == pytest.approx(2)
    assert found.effective == pytest.approx(3)


def test_large_requests_count_by_their_rows():
    """Losses 3, 1 and 0 of 4, 1 and 1 rows: ratio 4 / 6; worth 36 / 18 = 2 requests of one size."""
    found = Moments.of([3.0, 1.0, 0.0], [4, 1, 1]).estimate()
    assert found.value == pytest.approx(2 / 3)
    assert found.effective == pytest.approx(2)
    # Residuals 1/3, 1/3, -2/3: squares 6/9. Short by 1 - 2 66 / (18 6) + 18 / 36 = .2778.
    assert found.variance == pytest.approx(6 / 9 / (1 - 2 * 66 / (18 * 6) + 0.5) / 36)


def test_the_error_is_right_where_rows_are_wrong_together():
    """Over 20,000 draws of 10 requests of 1 to 8 rows, wrong as a whole, the mean variance is that of the ratio."""
    rng = np.random.default_rng(1)
    m = np.array([1, 1, 1, 2, 2, 3, 4, 5, 6, 8])
    found = Moments.of(m * rng.standard_normal((20_000, 10)), np.broadcast_to(m, (20_000, 10))).estimate()
    assert found.variance.mean() == pytest.approx(found.value.var(), rel=0.03)


def test_moments_add_and_are_of_what_is_beyond_a_rate():
    """Two windows give what one of all their requests gives."""
    rng = np.random.default_rng(2)
    s, m = rng.random(30), rng.integers(1, 5, 30)
    both = Moments.of(s[:10], m[:10]) + Moments.of(s[10:], m[10:])
    assert both.sums == pytest.approx(Moments.of(s, m).sums)
    assert both.less(0.3).sums == pytest.approx(Moments.of(s - 0.3 * m, m).sums)
    assert (Moments.none() + both).sums == pytest.approx(both.sums)


def test_an_interval_without_skewness_is_students():
    """-1, 0, 1: 4.30265 standard errors of .57735 on either side."""
    low, high = Moments.of([-1.0, 0.0, 1.0]).estimate().interval(0.05)
    assert high == pytest.approx(4.30265 * 0.57735, rel=1e-4)
    assert low == pytest.approx(-high)


def test_an_interval_of_skewed_losses_is_transformed():
    """With k the skewness of the mean, log(1 + 2 k / 3 (r - k / 6)) 3 / (2 k) in place of the quantile r."""
    x = np.array([0.0, 0.0, 0.1, 0.1, 0.2, 0.4, 0.9, 1.2])
    mean, sd, n = x.mean(), x.std(ddof=1), 8
    k = n**2 * ((x - mean) ** 3).sum() / ((n - 1) * (n - 2) * (n + 4)) / (np.sqrt(n) * sd**3)
    quantile = stats.t.ppf(0.975, n - 1)
    low, high = Moments.of(x).estimate().interval(0.05)
    for bound, r in ((low, quantile), (high, -quantile)):
        reach = 3 / (2 * k) * np.log(1 + 2 * k / 3 * (r - k / 6))
        assert bound == pytest.approx(mean - reach * sd / np.sqrt(n))
    assert high - mean > mean - low  # the few large losses may have been more


def test_a_score_and_the_bounds_of_it_are_inverse():
    """The score of the bound of a score is that score, however skewed and few."""
    found = Moments.of([0.0, 0.0, 0.1, 0.1, 0.2, 0.4, 0.9, 1.2]).estimate()
    for z in (0.5, 1.5, 2.0):
        low, high = found.bounds(z)
        assert found.z(low) == pytest.approx(z)
        assert found.z(high) == pytest.approx(-z)


def test_one_large_loss_among_zeros_has_no_upper_bound():
    """It may be the only one that was seen of many."""
    low, high = Moments.of([0.0] * 40 + [1.0]).estimate().bounds(3.5)
    assert high == np.inf
    assert low <= 1 / 41


def test_a_score_has_the_tail_of_students_t():
    """3 standard errors at 5 degrees are a tail of .01505, which is a normal score of 2.168."""
    found = Estimate(3.0, 1.0, 0.0, 5.0, 6.0)
    assert found.z() == pytest.approx(-stats.norm.ppf(stats.t.sf(3, 5)))
    assert found.z() == pytest.approx(2.168, abs=1e-3)


def test_few_clusters_are_told_with_what_they_are_worth():
    """40 of one size are enough; 60 of which one has all the rows are worth one."""
    assert Moments.of(np.arange(40.0)).few == ""
    assert Moments.of(np.arange(39.0)).few == "39 labelled requests, and 40 are needed"
    one = Moments.of(np.arange(60.0), np.append(np.full(59, 0.001), 1000.0))
    assert one.few == "60 labelled requests, worth 1 of one size, and 40 are needed"
    assert Moments.none().few == "0 labelled requests, and 40 are needed"


def test_what_does_not_vary_has_no_score():
    """Equal losses say nothing of chance."""
    assert Moments.of([0.2, 0.2, 0.2]).estimate().z(0.1) == 0


def test_equal_losses_of_a_known_range_have_the_score_of_a_row_of_them():
    """Ten losses of 1 where the mean is .5 are as rare as ten heads; none where the mean is what they are."""
    found = replace(Moments.of(np.ones(10)).estimate(), least=0.0, most=1.0)
    assert found.z(0.5) == pytest.approx(stats.norm.isf(0.5**10))
    assert found.z(1.0) == 0
    low, high = found.bounds(stats.norm.isf(0.5**10))
    assert (low, high) == (pytest.approx(0.5), 1.0)
    none = replace(Moments.of(np.zeros(10)).estimate(), least=0.0, most=1.0)
    assert none.z(0.5) == pytest.approx(-found.z(0.5))
    assert none.bounds(stats.norm.isf(0.5**10)) == (0.0, pytest.approx(0.5))


def test_a_difference_of_two_samples_is_welchs():
    """Variances 1 and 3 at 4 and 9 degrees: 16 / (1/4 + 1) = 12.8."""
    found = Estimate(5.0, 1.0, 0.1, 4.0, 5.0).minus(Estimate(2.0, 3.0, 0.3, 9.0, 10.0))
    assert found.value == 3
    assert found.variance == 4
    assert found.third == pytest.approx(-0.2)
    assert found.degrees == pytest.approx(12.8)


def test_pseudo_values_of_a_mean_are_the_values():
    """n mean - (n - 1) mean of the others is the value itself; of a ratio their mean error is the ratio's, nearly."""
    x = np.array([1.0, 2.0, 6.0])
    sums = np.stack([x, np.ones(3)], axis=1)
    assert pseudo_values(sums, lambda total: total[:, 0] / total[:, 1]) == pytest.approx(x)
