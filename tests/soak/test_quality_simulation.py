"""Thousands of simulated runs: intervals that hold as often as they say, and few false verdicts at 500 looks."""

import pytest
import quality_rates as rates
from quality_worlds import LATE, MODELS, WORLDS, log, squared

pytestmark = pytest.mark.soak

RUNS = 2000
MANY = 5 * RUNS
"""For shares near .95: of 2,000 runs one in seven would be off by half a point and more without a reason."""


@pytest.mark.parametrize("clusters", [40, 100])
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_an_interval_holds_in_94_to_96_of_a_hundred(world, clusters):
    """Equal and unlike sizes, skewed losses, weights of a sample, differences of two models."""
    assert 0.94 <= rates.covered(world, clusters=clusters, runs=MANY) <= 0.96


@pytest.mark.parametrize("loss", [squared, log])
def test_an_interval_of_the_skill_that_was_lost_holds(loss):
    """200 requests, of which 50 are of the rarer label, against 1,000 reference rows."""
    assert 0.94 <= rates.lost_covered(loss, rows=200, runs=RUNS) <= 0.96


@pytest.mark.parametrize("a_look", [1, 20])
@pytest.mark.parametrize("world", LATE, ids=lambda world: world.name)
def test_bounds_miss_at_any_of_500_looks_in_at_most_5_of_a_hundred(world, a_look):
    """Of bounds at 95%, as one look's are."""
    assert rates.missed(world, a_look=a_look, runs=RUNS) <= 0.05 * RUNS


@pytest.mark.parametrize("a_look", [1, 20])
@pytest.mark.parametrize("world", MODELS, ids=lambda world: world.name)
def test_an_equally_good_challenger_is_called_worse_in_at_most_1_of_a_hundred(world, a_look):
    """At any of 500 looks."""
    assert rates.called_worse(world, a_look=a_look, runs=RUNS) <= 0.01 * RUNS


@pytest.mark.parametrize(("name", "life", "every"), rates.UNCHANGED[:3], ids=[name for name, *_ in rates.UNCHANGED[:3]])
def test_a_model_that_is_as_it_was_is_called_worse_in_at_most_1_of_a_hundred_lives(name, life, every):
    """Though the base rate doubles, or goes up and down: and no more often than the bound says, without any margin."""
    first = rates.whole_life(life, margins=(0.0,), runs=RUNS, every=every)[0.0]
    assert rates.upper(int((first > 0).sum()), RUNS) <= 0.01


def test_a_model_that_became_worse_is_found():
    """A label that depends half as much on the feature: .2 of skill, within ten windows of 200 requests."""
    _, life = rates.CHANGED[0]
    first = rates.whole_life(life, margins=(0.01,), runs=100, every=1)[0.01]
    assert ((first > rates.CALM) & (first <= rates.CALM + 10)).mean() >= 0.9


def test_labelled_answers_that_are_alike_are_rarely_told_apart():
    """In 1 of a hundred windows; half a standard deviation is seen in nearly all."""
    assert rates.told_apart(0.0, runs=RUNS) <= 0.01
    assert rates.told_apart(0.7, runs=200) >= 0.9
