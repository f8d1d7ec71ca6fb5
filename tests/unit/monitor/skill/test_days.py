import numpy as np
import pytest

from raymlops.monitor.skill.clusters import Moments
from raymlops.monitor.skill.days import Days, days_of


def windows(means, *, requests=100, spread=0.5):
    """Return windows whose requests lost so much on average, half of them more and half less."""
    halves = spread * np.tile([-1.0, 1.0], requests // 2)
    return Moments(np.stack([Moments.of(mean + halves).sums for mean in means]))


def test_days_differ_by_what_requests_do_not_explain():
    """Means of -.1 and .1 in turns vary by .04 / 3 over four days, of which requests explain .25 / 99."""
    found = days_of(windows([-0.1, 0.1] * 2)).at(0)
    assert found.degrees == 3
    assert found.variance == pytest.approx(0.04 / 3 - 0.25 / 99)
    assert found.covariance == pytest.approx(-0.01)


def test_a_change_is_no_difference_between_days():
    """Before and since the third of four windows nothing differs; over all of them it does."""
    found = days_of(windows([0.0, 0.0, 1.0, 1.0]))
    assert found.at(2).variance == pytest.approx(-0.25 / 99)
    assert found.at(2).degrees == 2
    assert found.at(0).variance > 0.3


def test_days_that_resemble_each_other_are_worth_fewer():
    """With a correlation of .5 two days vary by (1 + .5) / 2, and many by 3 / n; without any by 1 / n."""
    alike = Days(1.0, 0.5, 10.0)
    assert alike.of_mean(1) == pytest.approx(1.0)
    assert alike.of_mean(2) == pytest.approx(0.75)
    assert alike.of_mean(1000) == pytest.approx(3 / 1000, rel=0.01)
    assert Days(1.0, -0.5, 10.0).of_mean(4) == pytest.approx(0.25)


def test_what_is_known_counts_by_its_degrees_of_freedom():
    """Three of .1 and one of .3 are .15; where single days spread twice as much, that one is worth a quarter."""
    assert (Days(0.1, 0.0, 3.0, 0.4) + Days(0.3, 0.0, 1.0, 0.2)).variance == pytest.approx(0.15)
    both = Days(0.1, 0.0, 3.0, 0.4) + Days(0.3, 0.0, 1.0, 0.7)
    assert both.degrees == pytest.approx(3.25)
    assert both.variance == pytest.approx((0.3 + 0.3 / 4) / 3.25)
    assert (Days() + Days()).of_mean(3) == 0
