"""What a sweep refuses before anything starts, and how many trials a cluster holds."""

from __future__ import annotations

import pytest
from tiny import Tiny

from raymlops.config.load import load_data
from raymlops.errors import UsageError
from raymlops.project import bind
from raymlops.tuning.checks import check, refuse_sqlite, slots


def project(**sweep):
    return bind(load_data({"project": {"name": "p"}, "recipe": {"import": Tiny}, "sweep": sweep}))


def nodes(*resources):
    return [{"Resources": dict(zip(("CPU", "GPU"), pair, strict=False))} for pair in resources]


@pytest.mark.parametrize(
    ("cluster", "cpus", "gpus", "expected"),
    [
        (nodes((2.0,)), 1.0, 0.0, 2),
        (nodes((1.2,)), 0.2, 0.0, 6),  # 1.2 / 0.2 is 5.999... in floating point
        (nodes((3.0,), (3.0,)), 2.0, 0.0, 2),  # a trial does not stretch over two nodes
        (nodes((8.0, 1.0), (8.0,)), 1.0, 0.5, 2),  # the node without a GPU holds none
        (nodes((1.0,)), 2.0, 0.0, 0),
    ],
)
def test_trials_are_counted_node_by_node(cluster, cpus, gpus, expected):
    assert slots(cluster, cpus=cpus, gpus=gpus) == expected


def test_an_empty_space_is_refused():
    with pytest.raises(UsageError, match=r"sweep\.space is empty"):
        check(project())


def test_a_metric_of_its_own_needs_its_mode():
    space = {"train.lr": {"float": [0.1, 0.2]}}
    with pytest.raises(UsageError, match=r"sweep\.mode does not say"):
        check(project(space=space, metric="validation/auc"))
    check(project(space=space, metric="validation/auc", mode="max"))


def test_sqlite_is_refused_where_there_are_several_nodes():
    refuse_sqlite("sqlite:////x/optuna.db", nodes=1)
    refuse_sqlite("postgresql://db/optuna", nodes=3)
    with pytest.raises(UsageError, match="has 2 nodes: a SQLite file lives on one"):
        refuse_sqlite("sqlite:////x/optuna.db", nodes=2)
