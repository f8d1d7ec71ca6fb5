"""Thousands of simulated rollouts of equally good and of worse versions, with the default settings."""

import pytest
from canary_worlds import World, even, false_alarms, run
from recorded_traffic import KINDS, WORSE, rolled_out
from scipy import stats

from raymlops.config.serve import RolloutSection

pytestmark = pytest.mark.soak

SETTINGS = RolloutSection()
COUNT = 2000
ALLOWED = stats.binom.ppf(0.999, COUNT, SETTINGS.alpha) / COUNT
"""A true 1% shows at most this in 999 of 1,000 runs."""


@pytest.mark.parametrize("errors", [0.0, 0.001, 0.01, 0.05, 0.2])
@pytest.mark.parametrize(("slow", "labelled"), [(0.01, 0.0), (0.1, 0.2)])
def test_an_equally_good_version_is_aborted_in_at_most_one_of_a_hundred_rollouts(errors, slow, labelled):
    """Looked at every second over two steps, with and without labels; none is held for want of a verdict."""
    world = World(errors=errors, slow=slow, loss=0.2)
    steps = even(world, world, settings=SETTINGS, rps=50)
    found = run(steps, settings=SETTINGS, count=COUNT, seed=7, labelled=labelled, look_s=120)
    assert found.share("abort") <= ALLOWED
    assert found.share("wait") == 0


@pytest.mark.parametrize("errors", [0.0, 0.001])
def test_five_points_more_errors_are_found_within_60_seconds(errors):
    """At 50 requests a second, a tenth of them the canary's, in at least 99% of the rollouts."""
    steps = even(World(errors=errors), World(errors=errors + 0.05), settings=SETTINGS, rps=50)
    assert run(steps, settings=SETTINGS, count=COUNT, seed=8, until_s=60).within(60) >= 0.99


@pytest.mark.parametrize("version", [World(errors=1.0), World(slow=1.0)])
def test_a_version_that_never_answers_well_is_found_within_5_seconds(version):
    """Every request an error, or late."""
    steps = even(World(errors=0.01), version, settings=SETTINGS, rps=50)
    assert run(steps, settings=SETTINGS, count=COUNT, seed=9, until_s=5).within(5) == 1.0


@pytest.mark.parametrize("rows", [1, 10, 100])
def test_equally_good_versions_are_not_aborted_by_requests_with_many_rows(rows):
    """Rows that go wrong together are one loss: of 2,000 rollouts over 2,400 requests, at most 1%."""
    assert false_alarms(rows, settings=SETTINGS, count=COUNT, seed=10) <= ALLOWED


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_whatever_the_traffic_good_versions_pass_and_worse_ones_do_not(kind):
    """Rows a request, units of a regression, refused and pinned requests, late labels: 1% of either error at most."""
    equal = rolled_out(kind, settings=SETTINGS, count=COUNT, seed=11)
    assert equal.share("abort") <= ALLOWED
    assert equal.share("promote") >= 0.98
    for worse in WORSE.values():
        assert rolled_out(kind, settings=SETTINGS, count=COUNT, seed=12, **worse).share("promote") <= 0.01
