"""What a canary loses of the champion's gain over a blind predictor, at any look."""

import math

import numpy as np
import pytest

from raymlops.monitor.skill.gain import Lost, log_harm, log_kept, part_lost_at_most

POWERS = np.arange(5)
LEVEL = 0.0025


def sums(gains):
    return (np.asarray(gains, dtype=float)[..., None] ** POWERS).sum(axis=-2)


def test_the_mean_is_the_difference_of_gains_and_its_spread_that_of_welch():
    """Canary 0 and .25, champion .5, .5 and 0: 1/3 - 1/8 lost; variances 1/64 / 2 and 1/18 / 3, by hand and n - 1."""
    lost = Lost.of(sums([0.0, 0.25]), sums([0.5, 0.5, 0.0]))
    assert lost.value == pytest.approx(1 / 3 - 1 / 8)
    count, first, squares, _, _ = lost.sums
    assert count == 5
    assert (squares - first**2 / count) / count**2 == pytest.approx(1 / 64 / 2 + 1 / 18 / 3)
    assert Lost.of(sums([0.0, 0.25]), sums([0.5, 0.5, 0.0]), keep=0.5).value == pytest.approx(1 / 6 - 1 / 8)
    assert Lost.of(sums([]), sums([0.5])).value == 0


def test_steps_add_and_hours_do_not_matter():
    """Both versions lose in the second step's hour; a version that is alike there loses nothing on average."""
    rng = np.random.default_rng(1)
    good, bad = rng.normal(0.2, 0.1, 4000), rng.normal(-0.2, 0.1, 4000)
    steps = [(sums(good[:400]), sums(good[400:])), (sums(bad[:2000]), sums(bad[2000:]))]
    assert log_harm(steps, level=LEVEL) < 1
    assert sum((Lost.of(*step) for step in steps[1:]), Lost.of(*steps[0])).value == pytest.approx(0, abs=0.01)


def test_what_an_earlier_step_showed_is_not_lost():
    """A constant at the first step; at the second there is no label yet, or both are alike."""
    rng = np.random.default_rng(2)
    gains = rng.normal(0.1, 0.2, 4000)
    first, alike = (sums([0.0] * 400), sums(gains)), (sums(gains[:2000]), sums(gains[2000:]))
    for later in ((sums([]), sums([])), (first[0] * 0, alike[1])):
        assert log_harm([first, later], level=LEVEL, extremes=(-0.5, 0.5)) >= -math.log(LEVEL)
    assert log_harm([alike, alike], level=LEVEL, extremes=(-0.5, 0.5)) < -math.log(LEVEL)


def test_a_part_of_the_gain_is_kept_surely():
    """.12 of .16 is kept: a quarter is lost, and with more labels the bound closes in on it."""
    rng = np.random.default_rng(3)

    def most(count):
        return part_lost_at_most(sums(rng.normal(0.12, 0.2, count)), sums(rng.normal(0.16, 0.2, count)), level=LEVEL)

    few, many = most(2000), most(200_000)
    assert 0.25 < many < 0.3 < few < 1
    assert most(10) is None


def test_beside_a_champion_that_gains_nothing_only_a_better_one_passes():
    rng = np.random.default_rng(4)
    blind, worse, better = (sums(rng.normal(mean, 0.2, 4000)) for mean in (-0.05, -0.06, 0.05))
    limit = -math.log(LEVEL)
    assert log_kept(better, blind, margin=0.5, level=LEVEL) >= limit
    assert log_kept(worse, blind, margin=0.5, level=LEVEL) < limit


def test_what_few_of_the_canarys_requests_may_have_missed_is_no_harm():
    """The champion gains .9 of one request in a hundred, the canary of none of its 200: that is chance in 13%."""
    champion = np.zeros(20_000)
    champion[::100] = 0.9
    assert log_harm([(sums([0.0] * 200), sums(champion))], level=LEVEL, extremes=(0.0, 0.9)) < -math.log(LEVEL)
    assert log_harm([(sums([0.0] * 3000), sums(champion))], level=LEVEL, extremes=(0.0, 0.9)) >= -math.log(LEVEL)


def test_many_rollouts_are_judged_at_once():
    rng = np.random.default_rng(5)
    sides = sums(rng.normal(0.1, 0.2, (2, 7, 300)))
    each = [log_harm([(sides[0, at], sides[1, at])], level=LEVEL) for at in range(7)]
    assert log_harm([(sides[0], sides[1])], level=LEVEL) == pytest.approx(each)
