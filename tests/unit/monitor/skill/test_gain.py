"""What a canary loses of the champion's gain over a blind predictor, at any look."""

import math

import numpy as np
import pytest
from canary_worlds import of_events
from scipy import stats

from raymlops.config.serve import RolloutSection
from raymlops.monitor.skill.gain import log_harm, log_kept, part_lost_at_most
from raymlops.monitor.skill.sequence import log_evidence

LIMIT = -math.log(0.0025)
EXTREMES = (-0.5, 0.5)


def sums(gains):
    return (np.asarray(gains, dtype=float)[..., None] ** np.arange(3)).sum(axis=-2)


def test_evidence_is_that_of_welchs_test_with_the_worst_request_more_on_each_side():
    rng = np.random.default_rng(0)
    canary, champion = rng.normal(0.1, 0.2, 60), rng.normal(0.2, 0.3, 300)
    ours, theirs = [*canary, 0.9], [*champion, -0.8]
    t = (np.mean(theirs) - np.mean(ours)) / math.sqrt(np.var(theirs, ddof=1) / 301 + np.var(ours, ddof=1) / 61)
    z = stats.norm.isf(stats.t.sf(t, 59))
    by_hand = log_evidence(z, 4 * 60 * 300 / 360)
    assert log_harm([(sums(canary), sums(champion))], extremes=(-0.8, 0.9)) == pytest.approx(by_hand)


def test_steps_add_and_hours_do_not_matter():
    """Both versions lose in the second step's hour; a version that is alike there loses nothing on average."""
    rng = np.random.default_rng(1)
    good, bad = rng.normal(0.2, 0.1, 4000), rng.normal(-0.2, 0.1, 4000)
    steps = [(sums(good[:400]), sums(good[400:])), (sums(bad[:2000]), sums(bad[2000:]))]
    assert log_harm(steps, extremes=EXTREMES) < 1
    assert log_kept(steps, margin=0.5, extremes=EXTREMES) < log_kept(steps[:1], margin=0.5, extremes=EXTREMES)
    assert log_harm([*steps, (sums([]), sums([]))], extremes=EXTREMES) == log_harm(steps, extremes=EXTREMES)


def test_a_part_of_the_gain_is_kept_surely():
    """.12 of .16 is kept: a quarter is lost, and with more labels the bound closes in on it."""
    rng = np.random.default_rng(3)

    def most(count):
        sides = sums(rng.normal(0.12, 0.2, count)), sums(rng.normal(0.16, 0.2, count))
        return part_lost_at_most([sides], extremes=(-1, 1), log_limit=LIMIT)

    few, many = most(2000), most(200_000)
    assert 0.25 < many < 0.3 < few < 1
    assert most(39) is None


def test_beside_a_champion_that_gains_nothing_only_a_better_one_passes():
    rng = np.random.default_rng(4)
    blind, worse, better = (sums(rng.normal(mean, 0.2, 4000)) for mean in (-0.05, -0.06, 0.05))
    assert log_kept([(better, blind)], margin=0.5, extremes=(-1, 1)) >= LIMIT
    assert log_kept([(worse, blind)], margin=0.5, extremes=(-1, 1)) < LIMIT


def test_what_few_of_the_canarys_requests_may_have_missed_is_no_harm():
    """The champion gains .9 of one request in a hundred, the canary of none of its 200: that is chance in 13%."""
    champion = np.zeros(20_000)
    champion[::100] = 0.9
    few, many = ([(sums(np.zeros(count)), sums(champion))] for count in (200, 3000))
    assert log_harm(few, extremes=(0.0, 0.9)) < LIMIT <= log_harm(many, extremes=(0.0, 0.9))
    assert log_kept([few[0][::-1]], margin=0.5, extremes=(0.0, 0.9)) < LIMIT


def test_many_rollouts_are_judged_at_once():
    rng = np.random.default_rng(5)
    sides = sums(rng.normal(0.1, 0.2, (2, 7, 300)))
    each = [log_harm([(sides[0, at], sides[1, at])], extremes=EXTREMES) for at in range(7)]
    assert log_harm([(sides[0], sides[1])], extremes=EXTREMES) == pytest.approx(each)


@pytest.mark.parametrize(("offset", "slope"), [(-6.3, 2.0), (-5.2, 2.0), (-4.3, 2.0), (-2.6, 2.0), (0.0, 0.6)])
def test_rare_events_and_weak_signals_are_judged_within_three_times_a_fixed_sample(offset, slope):
    """From 1% of events on: a verdict in four of five rollouts, and never one for a constant or exchanged ranks."""
    settings = RolloutSection()

    def verdicts(canary, action, count=20):
        found = of_events(canary, offset=offset, slope=slope, settings=settings, count=count, seed=8)
        assert set(found.actions) <= {action, "wait"}
        return np.mean((found.actions == action) & (found.labels <= 3.05 * found.fixed))

    assert verdicts("same", "promote", 100) >= 0.8
    assert verdicts("better", "promote") >= 0.8
    assert all(verdicts(canary, "abort") >= 0.8 for canary in ("constant", "reversed"))
