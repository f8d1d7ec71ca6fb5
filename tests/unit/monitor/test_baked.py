"""When a promoted version is taken back, and when it stays."""

from __future__ import annotations

import numpy as np
import pytest

from raymlops.monitor.baked import ALPHA, bake
from raymlops.monitor.skill.verdict import Verdict
from raymlops.predictions.counts import Counts

BEFORE = Counts(requests=10_000, errors=20, slow=100)


def baked(since, *, before=BEFORE, quality=None, hours=1.0):
    return bake(before, since, quality=quality, hours=hours, bake_h=24, error_margin=0.05, slow_margin=0.1)


def verdict(outcome, reason="0.050 of skill lost"):
    return Verdict(outcome, reason, 0.05, 0.01, 0.09, 500, 1000.0, 133.0)


def test_one_that_errs_far_more_is_taken_back_at_once():
    """30% of 1,000 requests against .2% of 10,000 before."""
    found = baked(Counts(requests=1000, errors=300), hours=0.1)

    assert found.outcome == "worse"
    assert found.reason.startswith(
        "errors and rejected requests 30.00% of 1,000 against 0.20% of 10,000 requests before"
    )


def test_rejected_and_late_requests_count_too():
    """As errors, and as slow answers."""
    assert baked(Counts(requests=1000, refused=300)).outcome == "worse"
    assert baked(Counts(requests=1000, slow=200, late=200)).reason.startswith("slow answers 40.00%")


@pytest.mark.parametrize("since", [Counts(requests=1000, errors=40), Counts(requests=10, errors=4), Counts()])
def test_what_is_within_the_margin_or_may_be_chance_bakes_on(since):
    """4% against .2% and 5 points allowed; 4 of 10; no request."""
    assert baked(since).outcome == "baking"


def test_skill_that_is_lost_takes_it_back():
    """By the verdict on quality since its promotion, whose reason is kept."""
    found = baked(Counts(), quality=verdict("worse"))

    assert (found.outcome, found.reason) == ("worse", "0.050 of skill lost")


def test_after_its_hours_it_stays_and_says_what_it_was_judged_by():
    """Nothing to compare with and no verdict is said."""
    assert baked(Counts(requests=500), hours=24).reason == (
        "it stood for 24.0 h; 500 requests since its promotion, 10,000 of the one before; quality not judged yet"
    )
    found = baked(Counts(requests=500), before=Counts(), quality=verdict("as before"), hours=25)
    assert found.outcome == "passed"
    assert found.reason.endswith("no requests of the version before it were counted to compare with; quality as before")


def test_one_that_is_as_the_one_before_is_hardly_ever_taken_back():
    """2,000 lives of 20 looks, 2% of errors before and since, no margin: at most 1 in 100, here with its bound."""
    rng, lives = np.random.default_rng(0), 2000
    before = rng.binomial(2000, 0.02, size=lives)
    since = rng.binomial(500, 0.02, size=(lives, 20)).cumsum(axis=1)
    worse = 0
    for life in range(lives):
        for look in (0, 4, 19):
            found = bake(
                Counts(requests=2000, errors=int(before[life])),
                Counts(requests=500 * (look + 1), errors=int(since[life, look])),
                quality=None,
                hours=1,
                bake_h=24,
                error_margin=0.0,
                slow_margin=1.0,
            )
            worse += found.outcome == "worse"
    assert worse / lives <= ALPHA
