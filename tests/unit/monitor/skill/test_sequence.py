import math

import numpy as np
import pytest
from scipy import integrate, stats

from raymlops.monitor.skill import sequence
from raymlops.monitor.skill.clusters import Moments


def test_a_mean_on_its_null_is_evidence_against_something_else():
    """At 300 clusters 1 + t / tau is 4, and M = 2 / sqrt(4) / 2."""
    assert sequence.log_evidence(0.0, 300) == pytest.approx(-math.log(2))


@pytest.mark.parametrize("clusters", [40, 1000])
def test_evidence_is_1_on_average(clusters):
    """Integrated over a normal score."""
    mean, _ = integrate.quad(
        lambda z: math.exp(sequence.log_evidence(z, clusters)) * stats.norm.pdf(z), -12, 25, limit=400
    )
    assert mean == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.05, 0.005])
@pytest.mark.parametrize("clusters", [40, 1000, 100_000])
def test_the_bound_is_where_evidence_reaches_its_limit(alpha, clusters):
    """Never too early, and late by at most a twentieth of a standard deviation."""
    bound = sequence.score_bound(clusters, alpha=alpha)
    assert sequence.log_evidence(bound, clusters) >= -math.log(alpha)
    assert sequence.log_evidence(bound - 0.05, clusters) < -math.log(alpha)


def test_too_few_clusters_are_bounded_by_nothing():
    """39 of one size; of 40 there are bounds."""
    values = np.tile([0.0, 1.0], 20)
    assert sequence.interval(Moments.of(values[:39]).estimate()) == (-np.inf, np.inf)
    low, high = sequence.interval(Moments.of(values).estimate())
    assert low < 0.5 < high
    assert low + high == pytest.approx(1.0)


def test_one_window_has_half_of_the_evidence():
    """The other half is of windows to come, which are worth 1."""
    window = Moments.of(np.tile([0.0, 1.0], 50))
    estimate = window.estimate()
    evidence, since = sequence.log_evidence_since(Moments(window.sums[None]))
    m = math.exp(sequence.log_evidence(estimate.z(), 100))
    assert evidence == pytest.approx(math.log(0.5 * m + 0.5))
    assert since == 0


def test_windows_of_few_requests_say_nothing_until_they_are_enough():
    """Three windows of ten: every start counts as 1."""
    sums = np.stack([Moments.of(np.ones(10) + np.arange(10)).sums] * 3)
    assert sequence.log_evidence_since(Moments(sums))[0] == pytest.approx(0.0)


def test_a_late_change_is_found_where_it_began():
    """Twenty windows without a loss, then four of one: since the 21st, number 20."""
    calm, worse = Moments.of(np.tile([-1.0, 1.0], 50)).sums, Moments.of(np.tile([-0.2, 1.8], 50)).sums
    evidence, since = sequence.log_evidence_since(Moments(np.stack([calm] * 20 + [worse] * 4)))
    assert evidence > math.log(1e6)
    assert since == 20
