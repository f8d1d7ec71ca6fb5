from __future__ import annotations

from raymlops.cluster.autoscaler import possible
from raymlops.cluster.placement import WorkerRequest

CONFIG = {
    "max_workers": 3,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 8}, "max_workers": 2},
        "gpu": {"resources": {"CPU": 4, "GPU": 1}, "max_workers": 4},
    },
}


def test_the_overall_limit_goes_to_the_nodes_that_hold_most():
    """Of two cpu and four gpu nodes three may come: for CPU work both cpu nodes and one gpu node."""
    nodes = possible(CONFIG, workers=[], requested=WorkerRequest(9, 1))
    assert [node["CPU"] for node in nodes] == [8, 8, 4]


def test_gpu_work_is_given_gpu_nodes():
    """A cpu node holds no worker with a GPU."""
    assert [node.get("GPU") for node in possible(CONFIG, workers=[], requested=WorkerRequest(9, 1, 1))] == [1, 1, 1]


def test_present_workers_count_towards_their_type_and_the_whole():
    """Both cpu nodes run, so that one gpu node is left of three workers."""
    present = [{"CPU": 8.0, "memory": 1e9}, {"CPU": 8.0}]
    assert possible(CONFIG, workers=present, requested=WorkerRequest(9, 1)) == [{"CPU": 4, "GPU": 1}]


def test_a_full_cluster_grows_no_more():
    """More nodes than the limit, as after it was lowered, is not a negative number."""
    assert possible(CONFIG, workers=[{"CPU": 8.0}] * 4, requested=WorkerRequest(1, 1)) == []
