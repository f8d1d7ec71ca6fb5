"""How many trials a sweep runs or requests on what a cluster has, gets and shares."""

from __future__ import annotations

import pytest

from raymlops.cluster.placement import Contender
from raymlops.config.load import load_data
from raymlops.errors import SweepError
from raymlops.tuning.execution.slots import StallDetector, concurrency
from raymlops.tuning.stalls import StallReport, Waiter


def spec(*overrides, **sweep):
    data = {"project": {"name": "p"}, "recipe": {"import": "m:C"}, "sweep": sweep}
    return load_data(data, overrides=overrides).spec


def nodes(*resources):
    return {str(index): dict(zip(("CPU", "GPU"), pair, strict=False)) for index, pair in enumerate(resources)}


def held(cpus, *pending, node="0"):
    return Contender(
        {node: {"CPU": float(cpus)}} if cpus else {}, tuple(({"CPU": float(amount)},) for amount in pending)
    )


@pytest.mark.parametrize(
    ("cluster", "cpus", "gpus", "expected"),
    [
        (nodes((2.0,)), 1.0, 0.0, 2),
        (nodes((1.2,)), 0.2, 0.0, 6),  # 1.2 / 0.2 is 5.999... in floating point
        (nodes((3.0,), (3.0,)), 2.0, 0.0, 2),  # a trial does not stretch over two nodes
        (nodes((8.0, 1.0), (8.0,)), 1.0, 0.5, 2),  # the node without a GPU holds none
        (nodes((64.0, 8.0)), 1.0, 0.4, 16),  # two on each of eight cards
        (nodes((64.0, 8.0)), 1.0, 0.6, 8),  # one on each
        (nodes((64.0, 7.5)), 1.0, 0.4, 15),  # a replica has half of a card, whose other half holds one more
        (nodes((64.0, 8.0)), 1.0, 2.0, 4),
        (nodes((1.0,)), 2.0, 0.0, 1),  # none fits now, but one may wait for room
    ],
)
def test_trials_are_counted_node_by_node_and_card_by_card(cluster, cpus, gpus, expected):
    shares = [f"train.cpus_per_worker={cpus}", f"train.gpus_per_worker={gpus}"]
    assert concurrency(spec(*shares), cluster) == expected


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ({}, 3),  # 4 + 2 CPUs, two each: the second node holds one, the first two
        ({"max_concurrent": 2}, 2),
        ({"max_concurrent": 9}, 3),  # there will never be more
        ({"workers_per_trial": 2}, 1),  # three workers fit: one pair
        ({"workers_per_trial": 4}, 1),  # none fits now
    ],
)
def test_as_many_trials_run_as_the_nodes_hold(sweep, expected):
    assert concurrency(spec("train.cpus_per_worker=2", **sweep), nodes((5.0,), (3.0,))) == expected


@pytest.mark.parametrize(
    ("head", "growth", "sweep", "expected"),
    [
        (0.0, [{"CPU": 8.0}] * 2, {}, 16),  # a head without CPUs: all that the cluster could become
        (2.0, [{"CPU": 8.0}] * 2, {}, 18),
        (2.0, [{"CPU": 8.0}] * 2, {"max_concurrent": 5}, 5),
        (2.0, [{"CPU": 8.0}] * 2, {"max_concurrent": 99}, 18),  # more would wait for ever
        (2.0, None, {"max_concurrent": 5}, 5),  # an autoscaler whose limit cannot be read
        (2.0, None, {}, 3),  # one that waits is enough for it to add a node
        (2.0, [{"CPU": 8.0}], {"workers_per_trial": 4}, 2),
    ],
)
def test_an_autoscaler_is_asked_for_what_it_may_add(head, growth, sweep, expected):
    assert concurrency(spec(**sweep), nodes((head,)), growth=growth) == expected


@pytest.mark.parametrize(
    ("usable", "others", "expected"),
    [
        (8.0, [], 8),
        (8.0, [held(0, 1)], 4),  # another job waits: half
        (7.0, [held(1, 1)], 4),  # it has one and wants more: half of all eight
        (5.0, [held(3, 1)], 4),
        (4.0, [held(4, 1)], 4),
        (4.0, [held(4)], 4),  # it waits for nothing, and the halves are even
        (1.0, [held(7)], 2),  # this one wants more, and the other one is to see it
        (3.0, [held(5)], 4),
        (2.0, [held(1, 1)], 2),  # of three CPUs two, as the other one would
        (9.0, [held(0, 1), held(0, 1)], 3),
        (1.0, [held(0, 1)], 1),  # never none
        (8.0, [held(0, 16)], 8),  # nothing given up would help it
        (8.0, [Contender({}, (({"GPU": 1.0},),))], 8),
    ],
)
def test_sweeps_share_what_there_is_while_one_waits(usable, others, expected):
    assert concurrency(spec(), nodes((usable,)), contenders=others) == expected


def test_shares_are_counted_on_each_node():
    """Two sweeps of 2-CPU trials on two nodes of three: one trial a node, whoever has the rest."""
    others = [Contender({"0": {"CPU": 2.0}}, (({"CPU": 2.0},),))]
    assert concurrency(spec("train.cpus_per_worker=2"), nodes((1.0,), (3.0,)), contenders=others) == 1


def look(*, reserved, running, minutes):
    """Return what is told each minute."""
    now = 0.0
    detector = StallDetector(lambda *_, **__: StallReport("x", reserved=reserved), clock=lambda: now)
    told = []
    for minute in range(minutes):
        now = 60.0 * minute
        told.append(detector.look([Waiter(3, 0.0, 1.0, 0.0)], busy=1 + running))
    return told


def test_a_process_that_never_starts_ends_the_sweep_which_can_be_resumed():
    """After ten minutes with its resources, where nothing runs that would end."""
    with pytest.raises(SweepError, match="no trial's process has started within 660 s"):
        look(reserved=True, running=0, minutes=20)


@pytest.mark.parametrize(("reserved", "running"), [(False, 0), (True, 1)])
def test_a_sweep_waits_for_others_as_long_as_they_take(reserved, running):
    """It says so each five minutes."""
    assert (
        look(reserved=reserved, running=running, minutes=20)
        == (["", "x"] + [""] * 4) + (["x"] + [""] * 4) * 2 + ["x"] + [""] * 3
    )


@pytest.mark.parametrize(("free", "expected"), [(1.0, 4), (2.0, 8)])
def test_who_waits_for_what_is_free_gets_that(free, expected):
    """Two replicas that are about to start."""
    others = [held(0, 1, 1)]
    assert concurrency(spec(), nodes((8.0,)), free=nodes((free,)), contenders=others) == expected


@pytest.mark.parametrize(
    ("usable", "pending", "expected"),
    [
        (4.0, [(4.0,)], 4),  # half of the CPUs would lie idle, and the other one could still not start
        (8.0, [(4.0,)], 4),
        (4.0, [(1.0,) * 4], 4),  # four workers that start together
        (4.0, [(1.0,) * 2], 2),
        (4.0, [(4.0,), (1.0,)], 2),  # one of its trials could
        (8.0, [(1.0,) * 16, (1.0,)], 4),
        (2.0, [(0.1,) * 10], 1),
    ],
)
def test_a_sweep_gives_up_what_helps_somebody(usable, pending, expected):
    groups = tuple(tuple({"CPU": cpus} for cpus in group) for group in pending)
    assert concurrency(spec(), nodes((usable,)), contenders=[Contender({}, groups)]) == expected


def test_who_cannot_be_helped_has_no_part_in_the_shares():
    others = [held(0, 8), held(0, 1)]
    assert concurrency(spec(), nodes((8.0,)), contenders=others) == 4


@pytest.mark.parametrize(("growth", "sweep"), [(None, {"max_concurrent": 6}), (None, {}), ([{"CPU": 8.0}], {})])
def test_nothing_is_added_for_a_sweep_that_others_wait_for(growth, sweep):
    """They request what they wait for themselves."""
    assert concurrency(spec(**sweep), nodes((8.0,)), contenders=[held(0, 1)], growth=growth) == 4
