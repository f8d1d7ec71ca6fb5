"""Moderated variances, against equations solved otherwise."""

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

from raymlops.monitor.shrinkage import MAX_PRIOR, moderate


def one_kind(contrasts):
    return np.zeros(contrasts, int)


def test_equal_variances_stay_as_they_are():
    """They differ by less than chance explains, so the prior has the most weight, and every one is the common one.

    The mean of log s^2 is off by digamma(d / 2) - log(d / 2) for d degrees of freedom: with d = 20 by -.1017 + .0017.
    """
    found, degrees = moderate(np.full((1, 50), 4.0), 20, one_kind(50))
    common = 4 * np.exp(np.log(10) - digamma(10) + digamma(MAX_PRIOR / 2) - np.log(MAX_PRIOR / 2))
    assert found == pytest.approx((MAX_PRIOR * common + 20 * 4) / (MAX_PRIOR + 20))
    assert degrees == pytest.approx(MAX_PRIOR + 20)


def test_the_prior_is_that_of_the_equations():
    """d0 and s0 by root finding on the equations of Smyth's section 6.2."""
    rng = np.random.default_rng(3)
    variances = rng.chisquare(10, 40) / 10 * 8 / rng.chisquare(8, 40)
    logs = np.log(variances) - digamma(5) + np.log(5)
    excess = logs.var(ddof=1) - polygamma(1, 5)
    d0 = 2 * brentq(lambda half: polygamma(1, half) - excess, 1e-2, 1e4)
    s0 = np.exp(logs.mean() + digamma(d0 / 2) - np.log(d0 / 2))
    found, degrees = moderate(variances, 10, one_kind(40))
    assert degrees == pytest.approx(d0 + 10, rel=1e-3)
    assert found == pytest.approx((d0 * s0 + 10 * variances) / (d0 + 10), rel=1e-3)


def test_true_parameters_are_found_again():
    """Of 20,000 variances with d0 = 6 and s0 = 2 from 15 degrees of freedom."""
    rng = np.random.default_rng(4)
    variances = 2 * 6 / rng.chisquare(6, 20_000) * rng.chisquare(15, 20_000) / 15
    _, degrees = moderate(variances, 15, one_kind(20_000))
    assert degrees[0] == pytest.approx(21, abs=0.7)


def test_two_variances_tell_no_prior():
    """They stay what they are, with the degrees of freedom they have."""
    found, degrees = moderate(np.array([1.0, 9.0]), 12, one_kind(2))
    assert list(found) == [1, 9]
    assert degrees == pytest.approx(12)


def test_each_leading_index_has_a_prior_of_its_own():
    """Two rows at once are the two one by one."""
    rng = np.random.default_rng(5)
    both = rng.chisquare(9, (2, 30)) * np.array([[1], [50]])
    together = moderate(both, 9, one_kind(30))
    for row in range(2):
        alone = moderate(both[row], 9, one_kind(30))
        assert together[0][row] == pytest.approx(alone[0])
        assert together[1][row] == pytest.approx(alone[1])


def test_each_kind_has_a_prior_of_its_own():
    """Kinds that are mixed are as if each were alone; two of a kind keep their variances."""
    rng = np.random.default_rng(6)
    variances, kinds = rng.chisquare(9, (3, 32)), np.array([0, 4] * 15 + [2, 2])
    found, degrees = moderate(variances, 9, kinds)
    for kind in (0, 4, 2):
        alone = moderate(variances[:, kinds == kind], 9, kinds[kinds == kind])
        assert found[:, kinds == kind] == pytest.approx(alone[0])
        assert degrees[:, kinds == kind] == pytest.approx(alone[1])
    assert found[:, kinds == 2] == pytest.approx(variances[:, kinds == 2])
