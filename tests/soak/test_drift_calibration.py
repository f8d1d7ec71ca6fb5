"""Hundreds of simulated references: alarms without drift at the rate that is promised, drift found as by an oracle."""

import drift_flights
import numpy as np
import pytest
from drift_calibrated import OWN, SEED, oracle, rate, simulated
from drift_worlds import AR9, AR99, DAYS, HOURS, IID, LEVEL

from raymlops.recipes.flights_features import flight_table

pytestmark = pytest.mark.soak

REFERENCES = 100
CELLS = [(world, 10, rows) for rows in (500, 5_000) for world in (IID, AR9, AR99, HOURS, DAYS, LEVEL)]
CELLS += [(IID, 200, 500), (AR99, 200, 500)]


def few_alarms(said):
    """Assert at most .01 of windows with a bound of .015, and with warnings .05 and .075."""
    mean, upper, _ = rate(said == "alarm")
    assert mean <= 0.01
    assert upper <= 0.015
    mean, upper, _ = rate((said == "alarm") | (said == "warn"))
    assert mean <= 0.05
    assert upper <= 0.075


@pytest.mark.parametrize(("world", "columns", "rows"), CELLS, ids=lambda of: getattr(of, "name", None))
def test_alarms_without_drift_are_few_and_drift_is_found(world, columns, rows):
    """Where an oracle has a power of .5, ours is at least .6 of it."""
    cell = world, columns, rows, OWN[world.phases]
    _, said, power, of_share = simulated(cell, references=REFERENCES)
    few_alarms(said)
    for name, ours in power.items():
        best = oracle(cell, name, windows=1, of_share=of_share)
        assert best < 0.5 or ours >= 0.6 * best, (name, ours, best)


@pytest.fixture(scope="module")
def flights():
    """Return the weeks of flights, and the columns of the rows."""
    return drift_flights.by_week(flight_table())


def test_weeks_of_flights_in_any_order_are_few_alarms(flights):
    """Real columns, in orders that are drawn: nothing drifts."""
    counts = drift_flights.counted(*flights)
    few_alarms(np.array([drift_flights.drawn_order(counts, seed=[SEED, at]) for at in range(REFERENCES)]))


@pytest.mark.parametrize("fault", drift_flights.FAULTS)
def test_a_fault_in_flights_is_named_within_two_weeks(flights, fault):
    """A carrier's code is renamed, or hours are those of another zone, from the 41st week on."""
    weeks, columns = flights
    counts = drift_flights.counted(weeks, drift_flights.with_fault(weeks, columns, fault=fault, since=40))
    verdicts = [
        drift_flights.judged(counts, own=np.arange(drift_flights.OWN), windows=[week - 1, week]) for week in (40, 41)
    ]
    assert any(verdict.outcome == "alarm" and verdict.flagged == (fault,) for verdict in verdicts)
