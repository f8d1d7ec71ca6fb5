import math

import numpy as np
import pytest

from raymlops.monitor.skill.clusters import Moments
from raymlops.monitor.skill.days import Days
from raymlops.monitor.skill.expected import Window
from raymlops.monitor.skill.verdict import Paired, above, judge


def window(mean, *, requests=100, spread=0.5, error=0.0):
    """Return a window in which requests lost ``mean`` of skill, half of them more and half less by ``spread``."""
    lost = mean + spread * np.tile([-1.0, 1.0], requests // 2)
    return Window(loss=0.5, reference=1.0, expected=0.5 - mean, lost=Moments.of(lost), error=error)


def test_nothing_is_said_without_labels():
    """No window, one of nothing, or requests below 40."""
    assert judge([]).outcome == "not enough labels"
    empty = judge([Window(loss=0.0, reference=1.0, expected=0.0, lost=Moments.none(), error=0.1)])
    assert (empty.outcome, empty.lost, empty.evidence) == ("not enough labels", None, 1.0)
    found = judge([window(0.9, requests=38)])
    assert found.outcome == "not enough labels"
    assert found.reason == "38 labelled requests, and 40 are needed"
    assert found.low is None


def test_few_labels_are_told_from_a_model_that_is_as_before():
    """At 100 requests the bound is about .05 x 3.7; at 2,000 a fifth of it, below the .1 that must be visible."""
    found = judge([window(0.0)])
    assert found.outcome == "not enough labels"
    assert found.high > 0.1
    found = judge([window(0.0)] * 20)
    assert found.outcome == "as before"
    assert 0.03 < found.high < 0.1
    assert found.low == pytest.approx(-found.high)


def test_a_model_that_lost_skill_is_worse():
    """.3 in each of ten windows of 100, 19 standard errors by nine degrees of freedom, since the first."""
    found = judge([window(0.3)] * 10)
    assert found.outcome == "worse"
    assert found.since == 0
    assert found.lost == pytest.approx(0.3)
    assert found.evidence > found.limit == 100
    assert found.reason == (
        "0.300 of skill lost since window 1 of 10, more than 0.01 (a model as it was shows as much in less than 1 of "
        "10,000 lives; 1 of 100 is the limit)"
    )


def test_a_change_after_a_long_calm_is_found():
    """Fifty windows without loss and three of .3: an average of .017 would show nothing."""
    found = judge([window(0.0)] * 50 + [window(0.3)] * 3)
    assert found.outcome == "worse"
    assert found.since == 50


DAYS = Days(0.0, 0.0, 60.0)
"""Sixty days that do not differ, as test rows may have shown."""


def test_one_bad_day_is_worse_only_where_the_test_rows_show_how_days_differ():
    """.3 of skill, six standard errors: without other days it may be a storm; and it is one where days vary by .3."""
    assert judge([window(0.3)]).outcome == "not enough labels"
    assert judge([window(0.3)], known=DAYS).outcome == "worse"
    assert judge([window(0.3)], known=Days(0.09, 0.0, 60.0)).outcome == "not enough labels"


def test_days_that_differ_by_themselves_are_not_worse():
    """Twenty windows of 10,000 requests lose .3 and gain .2 in turns: .05 on average, by .25 / sqrt(20) = .056."""
    assert judge([window(mean, requests=10_000) for mean in (0.3, -0.2)] * 10).outcome != "worse"
    assert judge([window(0.05, requests=10_000)] * 20).outcome == "worse"


def test_less_than_the_margin_is_never_worse():
    """However sure: .009 at a millionth of an error, and .03 with a margin of .05."""
    assert judge([window(0.009, spread=1e-3)] * 20).outcome == "as before"
    assert judge([window(0.03, spread=1e-2)] * 20).outcome == "worse"
    assert judge([window(0.03, spread=1e-2)] * 20, margin=0.05).outcome == "as before"


def test_the_error_of_the_reference_does_not_average_out():
    """.05 is worse by exact reference rows, and may be the chance of those whose error is .02: 2.8 x .02 > .04."""
    assert judge([window(0.05)] * 100).outcome == "worse"
    found = judge([window(0.05, error=0.02)] * 100)
    assert found.outcome == "not enough labels"
    assert found.limit == pytest.approx(1 / 0.0075)
    assert found.low < 0.05 - 2.8 * 0.02


def test_labels_that_are_not_to_be_believed_give_no_verdict():
    """Whatever they say; the numbers are told all the same."""
    found = judge([window(0.9)] * 5, refused="one key sent 90% of the labels")
    assert (found.outcome, found.reason) == ("no verdict", "one key sent 90% of the labels")
    assert found.lost == pytest.approx(0.9)


def test_evidence_stays_a_number():
    """Of a loss of which nobody can doubt."""
    assert math.isfinite(judge([window(0.9, spread=1e-6)] * 100).evidence)


def paired(difference, *, requests=400, spread=0.1):
    """Return two models whose losses differ by ``difference`` on average, of a reference loss of .5."""
    champion = np.linspace(0.2, 0.6, requests)
    challenger = champion + difference + spread * np.tile([-1.0, 1.0], requests // 2)
    return Paired.of(champion, challenger, clusters=np.arange(requests), reference=0.5)


def test_two_models_are_compared_by_the_same_requests():
    """Their losses vary by .2 and more; their difference, in skill, by .2 / sqrt(400) = .01."""
    found = paired(0.1).difference.estimate()
    assert found.value == pytest.approx(0.2)
    assert found.error == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize(
    ("difference", "requests", "said"),
    [
        (0.1, 400, "worse"),
        (-0.1, 400, "better"),
        (0.0, 20_000, "no worse"),
        (0.0, 400, "not enough labels"),
        (0.1, 38, "not enough labels"),
    ],
)
def test_a_challenger_is_worse_better_or_no_worse(difference, requests, said):
    """Bounds of about 3.5 standard errors of .2 / sqrt(requests), and a margin of .01."""
    assert paired(difference, requests=requests).compare()[0] == said


def test_days_add():
    """Two days of 200 requests are one of 400."""
    one, other = paired(0.1, requests=200), paired(0.1, requests=200)
    both = one + other
    assert both.difference.clusters == 400
    assert both.champion.estimate().value == pytest.approx(0.8)
    assert both.challenger.estimate().value == pytest.approx(1.0)


def rare(events, *, requests=5000, at_events=0.4):
    """Return a model for a rare event, and one that gains .0002 on all other requests and loses on the events."""
    happened = np.arange(requests) < events
    champion = np.where(happened, 0.5, 0.001)
    challenger = champion + np.where(happened, at_events, -0.0002)
    return Paired.of(champion, challenger, clusters=np.arange(requests), reference=0.002)


@pytest.mark.parametrize("events", [0, 1, 5])
def test_nobody_is_better_for_want_of_events(events):
    """What is gained on 5,000 requests is lost on three of them, and none, one or five have come."""
    assert rare(events).compare()[0] == "not enough labels"


def test_few_requests_that_carry_a_difference_decide_nothing():
    """20 of 5,000: worth 20 by the powers of their differences; 200 of 50,000 are enough."""
    outcome, why = rare(20).compare()
    assert outcome == "not enough labels"
    assert why == "5,000 labelled requests, and as many as 20 of them carry the difference: 40 are needed"
    assert rare(200, requests=50_000).compare()[0] == "worse"


def test_bounds_allow_for_requests_that_nobody_has_seen():
    """.001 of skill is gained on each of 1,000 requests; 1 - .005^(1/1000) = .00528 more may lose all, of .25 each."""
    champion = np.full(1000, 0.2)
    found = Paired.of(champion, champion - 0.00025, clusters=np.arange(1000), reference=0.25)
    assert found.compare(margin=0.0)[0] == "not enough labels"
    assert found.compare(margin=0.0203)[0] == "no worse"
    assert found.compare(margin=0.0201)[0] == "not enough labels"


def test_models_that_never_differ_are_alike():
    """However few of the requests there are."""
    same = np.linspace(0.1, 0.9, 40)
    assert Paired.of(same, same, clusters=np.arange(40), reference=0.25).compare()[0] == "no worse"


def test_a_mean_above_a_bound_is_told_since_some_window():
    """.2 of 100 requests with a spread of .1 is surely above .1, and never above .2."""
    losses = [Moments.of(0.2 + 0.1 * np.tile([-1.0, 1.0], 50))] * 5
    assert above(losses, 0.1)[0]
    assert above(losses, 0.2)[0] is False
    assert above([], 0.2) == (False, 1.0)


def test_losses_that_are_all_1_are_above_a_bound():
    """40 in a row where .1 is allowed; where .95 is, 40 answers are all wrong with 13%, and 500 never are."""
    assert above([Moments.of(np.ones(40))], 0.1)[0]
    assert not above([Moments.of(np.ones(40))], 0.95)[0]
    assert above([Moments.of(np.ones(500))] * 2, 0.95)[0]
    assert not above([Moments.of(np.ones(3))], 0.1)[0]
    assert not above([Moments.of(np.full(500, 0.1))] * 30, 0.1)[0]


def test_a_loss_of_skill_without_spread_is_worse():
    """All answers are wrong where none was: 2 of skill on each; the evidence is told up to 10,000."""
    found = judge([Window(loss=1.0, reference=0.5, expected=0.0, lost=Moments.of(np.full(500, 2.0)))], known=DAYS)
    assert found.outcome == "worse"
    assert found.reason.endswith(
        "(a model as it was shows as much in less than 1 of 10,000 lives; 1 of 100 is the limit)"
    )
    same = judge([Window(loss=0.25, reference=0.5, expected=0.25, lost=Moments.of(np.zeros(500)))])
    assert (same.outcome, same.high) == ("as before", 0.0)
