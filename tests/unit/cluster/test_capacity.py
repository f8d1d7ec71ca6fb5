from __future__ import annotations

from math import inf

from raymlops.cluster.capacity import logical_cpus
from raymlops.cluster.placement import Holder, WorkerRequest, decide, kept_out, remedy, room, some_end

TWO_NODES = [{"CPU": 4.0}, {"CPU": 4.0, "GPU": 1.0}]


def test_workers_that_fit_the_free_resources_go_ahead():
    """Two free nodes of 4 CPUs hold four workers of 2."""
    assert decide(WorkerRequest(4, 2), total=TWO_NODES, available=TWO_NODES).kind == "fits"


def test_a_worker_never_spans_nodes():
    """8 CPUs in all, yet no node has 5 of them."""
    verdict = decide(WorkerRequest(1, 5), total=TWO_NODES, available=TWO_NODES)
    assert verdict.kind == "never"
    assert "at most 0 of them" in verdict.message


def test_never_says_asked_maximum_and_holders():
    """Three things a person needs: what was asked, what there is at most, and who has it."""
    holders = [Holder("Serve application flights--v7 (x2)", {"CPU": 0.4})]
    verdict = decide(
        WorkerRequest(9, 1, purpose="train.num_workers"), total=TWO_NODES, available=[{"CPU": 3.6}], holders=holders
    )
    assert verdict.message == (
        "train.num_workers requests 9 workers of 1 CPU; this cluster holds at most 8 of them: "
        "it has 8 CPU, 1 GPU on 2 nodes\n  held by Serve application flights--v7 (x2): 0.4 CPU"
    )


def test_held_resources_mean_busy_and_not_never():
    """The nodes are large enough, but only 1 CPU of 8 is free."""
    verdict = decide(WorkerRequest(2, 2), total=TWO_NODES, available=[{"CPU": 1.0}, {}])
    assert verdict.kind == "busy"
    assert "room for 0 now, and for 4 when nothing else runs" in verdict.message


def test_an_autoscaler_that_may_add_enough_is_not_waited_for():
    """It starts nodes for work that asks, never for work that waits politely outside."""
    verdict = decide(WorkerRequest(3, 2), total=[{"CPU": 2.0}], available=[{"CPU": 2.0}], growth=[{"CPU": 4.0}])
    assert verdict.kind == "grows"


def test_the_autoscalers_maximum_counts_in_never():
    """2 CPUs now and 4 that may come hold three workers of 2, not four."""
    verdict = decide(WorkerRequest(4, 2), total=[{"CPU": 2.0}], available=[{"CPU": 2.0}], growth=[{"CPU": 4.0}])
    assert verdict.kind == "never"
    assert "it has 6 CPU on 2 nodes, 1 of which the autoscaler would add" in verdict.message


def test_an_unreadable_limit_refuses_nothing():
    """What may fit is left to Ray, which knows."""
    assert decide(WorkerRequest(99, 1), total=[{"CPU": 1.0}], available=[{"CPU": 1.0}], growth=None).kind == "grows"


def test_fractions_add_up_to_whole_cpus():
    """Ten workers of 0.1 fit one CPU, although 0.1 has no exact binary form."""
    assert room(WorkerRequest(10, 0.1), [{"CPU": 1.0}]) == 10


def test_a_gpu_binds_where_cpus_are_plenty():
    """Four CPUs and one GPU hold one worker that wants a GPU, two that share it."""
    assert room(WorkerRequest(4, 1, 1), TWO_NODES) == 1
    assert room(WorkerRequest(4, 1, 0.5), TWO_NODES) == 2


def test_workers_that_reserve_nothing_always_fit():
    """Nothing is counted, so nothing can be missing."""
    assert room(WorkerRequest(4, 0), [{}]) == inf


def test_a_cluster_of_our_own_has_at_least_two_cpus_unless_told():
    """A worker and a replica then fit one core; who asks for 1.5 gets whole CPUs."""
    assert logical_cpus(None) >= 2
    assert logical_cpus(1) == 1
    assert logical_cpus(1.5) == 2


def test_the_remedy_names_the_command_where_something_is_served():
    """A training that holds the rest ends by itself."""
    training = Holder("RayTrainWorker of job 01", {"CPU": 1.0})
    served = Holder("Serve application flights--v7 (x2)", {"CPU": 0.4})
    assert remedy([training]) == ""
    assert "`raymlops deploy NAME --remove --version N` ends one" in remedy([training, served])
    assert (some_end([served, training]), some_end([served]), some_end([])) == (True, False, False)


def test_what_fits_a_node_or_none_at_all_is_kept_out_by_nobody():
    """Ray starts the first in a moment; the others wait for nodes that are not there, whoever gives up what."""
    assert kept_out([{"CPU": 1}], rest=[{"CPU": 1}], held=[{"CPU": 3}]) == []
    larger = [{"CPU": 64}, {"CPU": 1, "fast_disk": 1}]
    assert kept_out(larger, rest=[{"CPU": 3}], held=[{"CPU": 1}]) == []


def test_workers_keep_out_what_would_fit_without_them():
    """Two nodes of two CPUs: a worker of two on one, of 1.5 on the other, whose half is too small for a task."""
    rest, held = [{"CPU": 0}, {"CPU": 0.5}], [{"CPU": 2}, {"CPU": 1.5}]
    assert kept_out([{"CPU": 1}] * 2, rest=rest, held=held) == [{"CPU": 1}] * 2
    assert kept_out([{"CPU": 1}], rest=[{"CPU": 0}, {"CPU": 2}], held=[{"CPU": 2}, {}]) == []


def test_a_small_request_hides_no_large_one():
    """Four CPUs, two of them the workers': a request of four waits for them, one of two has room beside."""
    assert kept_out([{"CPU": 4}, {"CPU": 2}], rest=[{"CPU": 2}], held=[{"CPU": 2}]) == [{"CPU": 4}]
