"""Which trial gets a freed process, on Tune's own controller: a sweep ends with every trial, whoever holds the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from simulated_sweep import Cluster, run, simulated

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("free", "counted", "trials"), [(1, 2, 6), (4, 8, 40), (1, 8, 12)])
def test_a_sweep_ends_where_fewer_processes_fit_than_were_counted(
    tmp_path: Path, free: int, counted: int, trials: int
) -> None:
    """Trials that wait for room take the processes that others leave."""
    cluster = Cluster(counted, held=counted - free)
    with simulated(tmp_path, cluster) as make:
        sweep = make(num_trials=trials, counts=lambda: counted)
        assert run(sweep), (sweep.ended, sweep.tune._actor_cache.num_cached_objects)
        assert [record.status for record in sweep.trials.records] == ["complete"] * trials


def test_trials_shorter_than_the_start_of_a_process_use_all_processes(tmp_path: Path) -> None:
    """The first free process does not take the trial of another one that is starting."""
    cluster = Cluster(4)
    with simulated(tmp_path, cluster) as make:
        sweep = make(num_trials=60, lasts_s=lambda _number: 0.1)
        assert run(sweep)
        assert len(sweep.processes.used) == 4


def test_two_sweeps_on_one_cluster_end_both(tmp_path: Path) -> None:
    """They begin at once, count what is free, and share it."""
    cluster = Cluster(2)
    with simulated(tmp_path, cluster) as make:
        sweeps = [make("one", num_trials=9), make("two", num_trials=7)]
        assert run(*sweeps), [sweep.ended for sweep in sweeps]
        assert [sweep.ended for sweep in sweeps] == [9, 7]


def test_no_idle_process_is_kept_once_no_trial_is_left_for_it(tmp_path: Path) -> None:
    """Another sweep or an endpoint may wait for it, and the last trial may take hours."""
    cluster = Cluster(2)
    with simulated(tmp_path, cluster) as make:
        sweep = make(num_trials=3, lasts_s=lambda number: 1000.0 if number == 2 else 1.0)
        run(sweep, until_s=100.0)
        assert (sweep.ended, cluster.free) == (2, 1)
        assert run(sweep)


def test_a_sweep_grows_with_what_becomes_free(tmp_path: Path) -> None:
    """Whoever held three of four CPUs leaves after a while; short trials do not take each other's new processes."""
    cluster = Cluster(4, held=3)
    with simulated(tmp_path, cluster) as make:
        sweep = make(num_trials=100, lasts_s=lambda _number: 0.5)
        run(sweep, until_s=20.0)
        assert sweep.processes.peak == 1
        cluster.held = 0
        assert run(sweep)
        assert (sweep.processes.peak, len(sweep.processes.used), sweep.ended) == (4, 4, 100)


def test_a_sweep_waits_where_nothing_is_free_and_says_so(tmp_path: Path) -> None:
    """Nothing is free for a minute: one trial waits, which is told once; then it runs, and the others."""
    cluster = Cluster(2, held=2)
    asked = []

    def explain(waiters, *, still_s, running):
        asked.append(([waiter.number for waiter in waiters], still_s, running))
        return "held by others"

    with simulated(tmp_path, cluster) as make:
        sweep = make(num_trials=5, explain=explain)
        run(sweep, until_s=60.0)
        assert sweep.ended == 0
        assert [(numbers, round(still_s), running) for numbers, still_s, running in asked] == [([0], 30, 0)]
        told = [event for event in sweep.events if event.kind == "message"]
        assert [(event.message, event.counts["waiting"], event.counts["running"]) for event in told] == [
            ("held by others", 1, 0)
        ]
        cluster.held = 0
        assert run(sweep)
        assert (sweep.ended, sweep.processes.peak, len(asked)) == (5, 2, 1)
