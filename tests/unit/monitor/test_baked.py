"""When a promoted version is taken back, and when it stays."""

from __future__ import annotations

import numpy as np
import pytest

from raymlops.monitor.baked import ALPHA, Compared, bake, compare
from raymlops.monitor.skill.verdict import Verdict
from raymlops.predictions.counts import Counts
from raymlops.predictions.labelled_rows import Rows

BEFORE = Counts(requests=10_000, errors=20, slow=100)


def baked(since, *, before=BEFORE, parts=None, quality=None, compared=None, hours=1.0):
    return bake(
        before,
        since,
        parts=[Counts()] * int(hours // 6) if parts is None else parts,
        quality=quality,
        compared=compared,
        hours=hours,
        bake_h=24,
        error_margin=0.05,
        slow_margin=0.1,
    )


AS = {"version": 2, "before": 1, "margin": 0.01}


def rows_of(before, losses, requests):
    """Return rows on which version 1 has the losses ``before``."""
    return Rows({"champion": before, "challenger": losses, "requests": requests, "weights": np.ones(len(before))})


def beside(*, lost, requests=1000):
    """Return version 2 beside version 1 on requests of 4 rows; its losses are higher by so much of the mean."""
    rng = np.random.default_rng(0)
    before = rng.uniform(0.5, 1.5, size=4 * requests)
    losses = before + lost + rng.normal(0, 0.01, size=len(before))
    clusters = np.repeat(np.arange(requests), 4)
    return compare(rows_of(before, losses, clusters), **AS, until="2026-01-01")


def verdict(outcome, reason="0.050 of skill lost"):
    return Verdict(outcome, reason, 0.05, 0.01, 0.09, 500, 1000.0, 133.0)


def test_one_that_errs_far_more_is_taken_back_at_once():
    """30% of 1,000 requests against .2% of 10,000 before."""
    found = baked(Counts(requests=1000, errors=300), hours=0.1)

    assert found.outcome == "worse"
    assert found.reason.startswith("errors 30.00% of 1,000 against 0.20% of 10,000 requests before")


def test_late_requests_count_as_slow_and_rejected_ones_do_not_count():
    """A caller that begins to send rows that every version rejects takes no version back."""
    assert baked(Counts(requests=1000, refused=300)).outcome == "baking"
    assert baked(Counts(requests=1000, slow=200, late=200)).reason.startswith("slow answers 40.00%")


@pytest.mark.parametrize("since", [Counts(requests=1000, errors=40), Counts(requests=10, errors=4), Counts()])
def test_what_is_within_the_margin_or_may_be_chance_bakes_on(since):
    """4% against .2% and 5 points allowed; 4 of 10; no request."""
    assert baked(since).outcome == "baking"


def test_a_failure_that_begins_late_is_not_hidden_by_the_hours_before():
    """All of 300 requests since hour 18, after 60,000 that went well: .5% of all, and 5% more is allowed."""
    parts = [Counts(requests=20_000 * part) for part in (1, 2, 3)]
    found = baked(Counts(requests=60_300, errors=300), parts=parts, hours=18.5)

    assert found.outcome == "worse"
    assert found.reason.startswith("errors 100.00% of 300 since part 3 of 4 of the bake against 0.20% of 10,000")


def test_errors_are_bounded_where_none_of_the_version_before_were_counted():
    """As after a rollout of one step of 100%; requests that it rejects are not, since clients may send such ones."""
    nothing = {"before": Counts(), "hours": 24.0}
    assert baked(Counts(requests=4000, errors=4000), **nothing).reason.startswith(
        "errors 100.00% of 4,000 against none, as before nobody counted: at least"
    )
    assert baked(Counts(requests=4000, refused=4000, slow=4000), **nothing).outcome == "passed"


def test_a_clock_that_is_set_forward_ends_one_part_alone():
    """The bake goes on for the other three."""
    assert baked(Counts(requests=3), parts=[Counts(requests=3)], hours=25).outcome == "baking"


def test_a_world_that_changes_takes_nothing_back_and_ends_the_bake():
    """Skill is lost, and the version before answers the same requests no better: another retraining is what is due."""
    found = baked(Counts(), quality=verdict("worse"), compared=beside(lost=-0.1))

    assert found.outcome == "passed"
    assert found.reason.startswith("after 1.0 of 24 h, since the one before would be no better")
    assert "quality worse; version 2 beside version 1 on the same 4,000 labelled rows: -0.1" in found.reason
    unsure = baked(Counts(), quality=verdict("worse"), compared=beside(lost=0, requests=20))
    assert unsure.outcome == "baking"


def test_one_that_is_worse_than_the_one_before_on_the_same_requests_is_taken_back():
    """Where skill is lost since its promotion too: 5% of the loss for certain, and 1% is allowed."""
    found = baked(Counts(), quality=verdict("worse"), compared=beside(lost=0.05))

    assert found.outcome == "worse"
    assert found.reason.startswith(
        "0.050 of skill lost; version 2 beside version 1 on the same 4,000 labelled rows: +0.05"
    )
    assert baked(Counts(), quality=verdict("as before"), compared=beside(lost=0.05)).outcome == "baking"
    assert found.reason.endswith("and +0.01 is allowed")


def test_a_loss_within_the_margin_takes_nothing_back():
    """.5% of the loss on 5,000 requests, and 1% is allowed; of 1,000, .5% may be of a kind that was not seen."""
    assert beside(lost=0.005, requests=5000).outcome == "not worse"
    assert beside(lost=0.005).outcome == "not enough labels"


def test_few_requests_say_nothing():
    """20 requests."""
    assert beside(lost=0.5, requests=20).outcome == "not enough labels"


def test_where_they_cannot_be_compared_its_own_skill_decides():
    """And that is said."""
    why = Compared("not compared", "serve.log.redact leaves soil out of the log", "2026-01-01")
    found = baked(Counts(), quality=verdict("worse"), compared=why)

    assert (found.outcome, found.reason) == (
        "worse",
        "0.050 of skill lost; by its own answers alone: serve.log.redact leaves soil out of the log",
    )
    assert baked(Counts(), quality=verdict("as before"), compared=why, hours=24).outcome == "passed"


def test_before_they_are_compared_skill_takes_nothing_back():
    """A comparison is due as soon as there is a verdict."""
    assert baked(Counts(), quality=verdict("worse")).outcome == "baking"


def test_one_without_any_loss_is_no_unit():
    """The version before answers all of them perfectly."""
    found = compare(rows_of(*np.zeros((2, 50)), np.arange(50)), **AS, until="2026-01-01")

    assert not found.is_known


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
            ended = [number for number in (4, 9, 14) if number < look]
            found = bake(
                Counts(requests=2000, errors=int(before[life])),
                Counts(requests=500 * (look + 1), errors=int(since[life, look])),
                parts=[Counts(requests=500 * (number + 1), errors=int(since[life, number])) for number in ended],
                quality=None,
                compared=None,
                hours=1,
                bake_h=24,
                error_margin=0.0,
                slow_margin=1.0,
            )
            worse += found.outcome == "worse"
    assert worse / lives <= ALPHA
