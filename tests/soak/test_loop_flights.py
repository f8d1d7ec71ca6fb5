"""39 weeks of flights: the loop beside a frozen model and one that is retrained blindly every four weeks."""

import numpy as np
import pytest
import torch
from flight_weeks import FlightWeeks
from loop_courses import GATE, SEEDS, shortfall, side_by_side
from paired_weeks import difference, over_seeds

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def courses():
    """Return all courses of each seed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    world = FlightWeeks()
    yield [side_by_side(world, seed=seed) for seed in SEEDS]
    torch.set_num_threads(before)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_loop_is_not_worse_than_the_better_of_both_by_more_than_the_gates_margin(courses, seed):
    """Mean log loss of 39 weeks, whichever of frozen and blind turned out to be the better."""
    weeks = {name: course.weeks for name, course in courses[seed].items()}
    assert shortfall(weeks) <= GATE.margin


def test_the_loop_is_better_than_a_frozen_model(courses):
    """For certain: whole weeks are drawn, and the bounds at 95% of what is gained leave out nothing gained."""
    ours, theirs = (over_seeds([each[name].weeks for each in courses]) for name in ("loop", "frozen"))
    _, low, high = difference(ours, theirs)["loss"]
    assert low < high < 0


def test_the_gate_rejects_some_of_what_a_schedule_retrains(courses):
    """And whatever it promotes is promoted once."""
    for each in courses:
        loop = each["loop"]
        assert loop.count("retrained") == loop.count("promoted") + loop.count("rejected")
        assert loop.count("rejected") >= 1
        assert np.all(np.diff(loop.versions) >= 0) or loop.count("taken back")
