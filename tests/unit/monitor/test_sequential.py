import itertools
import math

import numpy as np
import pytest
from scipy import special, stats

from raymlops.monitor.sequential import (
    RATE_CENTRES,
    rate_bounds,
    rate_harm,
)

BETS = [*(0.95 / 2**k for k in range(10)), 0.0]


def by_hand(requests, *, weight, centres):
    """Multiply the bets of the module's docstring, one request (of the canary, loss) after the other."""
    total = 0.0
    for centre, part in centres:
        for bet in BETS:
            size = bet / max(centre / weight, (1 - centre) / (1 - weight))
            product = part / len(BETS)
            for ours, loss in requests:
                product *= 1 + size * ((loss - centre) / weight if ours else -(loss - centre) / (1 - weight))
            total += product
    return total


def test_evidence_is_the_product_of_bets_over_requests():
    """Counts give the number that a walk through the requests gives."""
    requests = [(True, 1), (False, 0), (False, 1), (True, 0), (True, 1), (False, 0)]
    assert math.exp(rate_harm((2, 3), (1, 3), weight=0.3)) == pytest.approx(
        by_hand(requests, weight=0.3, centres=RATE_CENTRES)
    )


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("rate", [0.05, 0.5, 0.95])
def test_evidence_against_an_equal_version_is_1_on_average(weight, rate):
    """Exactly, over all that can happen in five requests; below 1 for a better version, above it for a worse one."""

    def average(ours):
        total = 0.0
        for outcome in itertools.product([(True, 1), (True, 0), (False, 1), (False, 0)], repeat=5):
            chance = 1.0
            for canary, event in outcome:
                p = ours if canary else rate
                chance *= (weight if canary else 1 - weight) * (p if event else 1 - p)
            counts = [
                (sum(e for c, e in outcome if c is side), sum(c is side for c, _ in outcome)) for side in (True, False)
            ]
            total += chance * math.exp(rate_harm(*counts, weight=weight))
        return total

    assert average(rate) == pytest.approx(1.0)
    assert average(rate - 0.04) < 1 < average(rate + 0.04)


def test_four_errors_of_four_at_a_tenth_are_proof():
    """The largest bet gains 1 + 0.95 x 0.9 x 9 / 0.9 = 9.55 each: 0.9 / 11 x 9.55^4 = 680 is its part alone."""
    assert math.exp(rate_harm((4, 4), (0, 36), weight=0.1)) > 0.9 / 11 * 9.55**4 > 200


def test_good_requests_cannot_hide_bad_ones_that_come_later():
    """After a hundred million of them the evidence is no lower than the part of the bet of nothing, 0.9 / 11."""
    assert rate_harm((10**6, 10**7), (9 * 10**6, 9 * 10**7), weight=0.1) > math.log(0.9 / 11)


def test_evidence_stays_a_number():
    """With a thousand million requests, none, and only those of one side."""
    for canary, champion in [((10**8, 10**8), (0, 9 * 10**8)), ((0, 0), (0, 0)), ((0, 10**9), (10**9, 10**9))]:
        assert math.isfinite(rate_harm(canary, champion, weight=0.1))


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_without_chance_there_is_no_evidence(weight):
    """All requests on one side cannot be compared: the e-value is 1, its logarithm 0."""
    assert rate_harm((50, 50), (0, 50), weight=weight) == 0


def test_many_rollouts_are_asked_at_once():
    """Arrays of counts give what the numbers give one by one."""
    errors, requests = np.array([[0, 3], [7, 9]]), np.array([[10, 30], [70, 90]])
    found = rate_harm((errors, requests), (errors, 9 * requests), weight=0.1)
    for place in np.ndindex(2, 2):
        one = rate_harm((errors[place], requests[place]), (errors[place], 9 * requests[place]), weight=0.1)
        assert found[place] == pytest.approx(one)


def test_a_share_that_swings_with_the_hour_is_no_evidence():
    """Both versions err at 1% and 30% in turns: 500 equal rollouts of 600 looks stay below 1 / 0.05 in 95%."""
    rng = np.random.default_rng(3)
    rates = np.where(np.arange(600) // 60 % 2, 0.3, 0.01)
    requests = rng.binomial(rng.poisson(50, (500, 600)), 0.1), rng.poisson(45, (500, 600))
    sides = [(rng.binomial(number, rates).cumsum(1), number.cumsum(1)) for number in requests]
    assert (rate_harm(*sides, weight=0.1).max(axis=1) >= math.log(20)).mean() <= 0.05


@pytest.mark.parametrize(("events", "total"), [(0, 300), (3, 300), (150, 300), (300, 300)])
def test_bounds_of_a_share_are_where_robbins_mixture_says(events, total):
    """At the bound the mixture stands 1 / alpha above the likelihood; SciPy's betaln is the second opinion."""
    mixture = special.betaln(events + 0.5, total - events + 0.5) - special.betaln(0.5, 0.5)
    for bound, closed in zip(rate_bounds(events, total, alpha=0.01), (0.0, 1.0), strict=True):
        likelihood = special.xlogy(events, bound) + special.xlog1py(total - events, -bound)
        assert bound == closed or mixture - likelihood == pytest.approx(math.log(100), abs=0.05)
    exact = stats.binomtest(events, total).proportion_ci(0.98, method="exact")
    lower, upper = rate_bounds(events, total, alpha=0.01)
    assert lower <= exact.low <= exact.high <= upper  # what may be looked at always is wider than what may be once


def test_bounds_hold_at_all_looks():
    """Of 400 versions that err at 5%, looked at 60 times, at most 5% ever leave a bound of alpha 0.05 on a side."""
    rng = np.random.default_rng(4)
    events = rng.binomial(20, 0.05, (400, 60)).cumsum(1)
    bounds = np.array([[rate_bounds(int(k), 20 * (n + 1), alpha=0.05) for n, k in enumerate(row)] for row in events])
    assert (bounds[..., 0] > 0.05).any(1).mean() <= 0.05
    assert (bounds[..., 1] < 0.05).any(1).mean() <= 0.05


def test_nothing_counted_bounds_nothing():
    """No request may have any share of errors."""
    assert rate_bounds(0, 0, alpha=0.01) == (0.0, 1.0)
