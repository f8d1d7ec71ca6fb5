"""How many trials a cluster holds."""

from __future__ import annotations

import pytest

from raymlops.config.load import load_data
from raymlops.tuning.execution.slots import concurrency


def spec(*overrides, **sweep):
    data = {"project": {"name": "p"}, "recipe": {"import": "m:C"}, "sweep": sweep}
    return load_data(data, overrides=overrides).spec


def nodes(*resources):
    return [dict(zip(("CPU", "GPU"), pair, strict=False)) for pair in resources]


@pytest.mark.parametrize(
    ("cluster", "cpus", "gpus", "expected"),
    [
        (nodes((2.0,)), 1.0, 0.0, 2),
        (nodes((1.2,)), 0.2, 0.0, 6),  # 1.2 / 0.2 is 5.999... in floating point
        (nodes((3.0,), (3.0,)), 2.0, 0.0, 2),  # a trial does not stretch over two nodes
        (nodes((8.0, 1.0), (8.0,)), 1.0, 0.5, 2),  # the node without a GPU holds none
        (nodes((1.0,)), 2.0, 0.0, 1),  # none fits now, but one may wait for room
    ],
)
def test_trials_are_counted_node_by_node(cluster, cpus, gpus, expected):
    shares = [f"train.cpus_per_worker={cpus}", f"train.gpus_per_worker={gpus}"]
    assert concurrency(spec(*shares), cluster) == expected


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ({}, 3),  # 4 + 2 CPUs, two each: the second node holds one, the first two
        ({"max_concurrent": 2}, 2),
        ({"workers_per_trial": 2}, 1),  # three workers fit: one pair
        ({"workers_per_trial": 4}, 1),  # none fits now, but an autoscaler may add a node
    ],
)
def test_as_many_trials_run_as_the_nodes_hold(sweep, expected):
    assert concurrency(spec("train.cpus_per_worker=2", **sweep), nodes((5.0,), (3.0,))) == expected
