"""Hundreds of simulated references: alarms without drift at the rate that is promised, drift found as by an oracle."""

import pytest
from drift_calibrated import OWN, oracle, rate, simulated
from drift_worlds import AR9, AR99, DAYS, HOURS, IID, LEVEL

pytestmark = pytest.mark.soak

REFERENCES = 100


@pytest.mark.parametrize("rows", [500, 5_000])
@pytest.mark.parametrize("world", [IID, AR9, AR99, HOURS, DAYS, LEVEL], ids=lambda world: world.name)
def test_alarms_without_drift_are_few_and_drift_is_found(world, rows):
    """At most .01 of windows with a bound of .015, warnings .05 and .06; power .6 of an oracle's that has .5."""
    cell = world, 10, rows, OWN[world.phases]
    _, said, power, of_share = simulated(cell, references=REFERENCES)
    mean, upper, _ = rate(said == "alarm")
    assert mean <= 0.01
    assert upper <= 0.015
    mean, upper, _ = rate((said == "alarm") | (said == "warn"))
    assert mean <= 0.05
    assert upper <= 0.06
    for name, ours in power.items():
        best = oracle(cell, name, windows=1, of_share=of_share)
        assert best < 0.5 or ours >= 0.6 * best, (name, ours, best)
