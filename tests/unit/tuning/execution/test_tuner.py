"""Which trial gets a freed process, on Tune's own controller: a sweep ends with every trial, whoever holds the rest."""

from __future__ import annotations

import hashlib
import inspect
from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune import experiment
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.search import SearchGenerator
from simulated_sweep import Cluster, SimulatedSweep, run, simulated

from raymlops.tuning.execution import tuner
from raymlops.tuning.execution.tuner import prepared_tune
from raymlops.tuning.stalls import StallReport

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
        return StallReport("held by others")

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


def peaks(*sweeps: SimulatedSweep, from_s: float, until_s: float) -> list[int]:
    """Run sweeps side by side and return the most processes that each had at any moment of a time."""
    most = [0] * len(sweeps)
    run(*sweeps, until_s=from_s)
    while not run(*sweeps, until_s=sweeps[0].cluster.now + 0.5) and sweeps[0].cluster.now < until_s:
        most = [
            max(pair) for pair in zip(most, (sweeps[0].cluster.taken[one.processes] for one in sweeps), strict=True)
        ]
    return most


def test_a_second_sweep_gets_its_first_slot_within_a_trial_and_its_half_soon(tmp_path: Path) -> None:
    """Both want all of eight CPUs. Trials take 20 s."""
    cluster = Cluster(8)
    with simulated(tmp_path, cluster) as make:
        first = make("first", num_trials=120, lasts_s=lambda number: 20.0 + number % 7)
        run(first, until_s=60.0)
        assert cluster.taken[first.processes] == 8
        second = make("second", num_trials=60, lasts_s=lambda number: 20.0 + number % 5)
        run(first, second, until_s=60.0 + 27.0 + 2.0)
        assert cluster.taken[second.processes] >= 1
        assert peaks(first, second, from_s=160.0, until_s=300.0) == [4, 4]
        assert run(first, second), (first.ended, second.ended)
        assert (first.ended, second.ended, first.processes.peak) == (120, 60, 8)


def test_trials_that_wait_for_room_give_way_to_another_sweep(tmp_path: Path) -> None:
    """The first one has both CPUs and eight trials that wait for nodes which never come; trials take 20 s.

    The second one has its first slot within a trial, and neither has more than half from then on.
    """
    cluster = Cluster(2)
    with simulated(tmp_path, cluster) as make:
        first = make("first", num_trials=20, lasts_s=lambda number: 20.0 + number % 3, growth=8)
        run(first, until_s=30.0)
        assert (first.processes.num_pending_actors, cluster.taken[first.processes]) == (8, 2)
        second = make("second", num_trials=16, lasts_s=lambda _number: 20.0, growth=8)
        run(first, second, until_s=30.0 + 22.0 + 4.0)
        assert cluster.taken[second.processes] == 1
        assert peaks(first, second, from_s=60.0, until_s=200.0) == [1, 1]
        assert run(first, second), (first.ended, second.ended)
        assert [record.number for record in sorted(first.trials.records, key=lambda one: one.number)] == [*range(20)]


def test_a_trial_that_lost_its_slot_keeps_no_process_waiting(tmp_path: Path) -> None:
    """Trials wait for room, and lose their slots to an endpoint; what is idle is released, and all trials run."""
    cluster = Cluster(4)
    with simulated(tmp_path, cluster) as make:
        sweep = make(num_trials=12, lasts_s=lambda _number: 10.0, growth=4)
        run(sweep, until_s=5.0)
        assert sweep.processes.num_pending_actors == 4
        cluster.asked = 2
        run(sweep, until_s=20.0)
        assert (cluster.held, cluster.taken[sweep.processes]) == (2, 2)
        assert run(sweep)
        assert [record.status for record in sweep.trials.records] == ["complete"] * 12


def test_what_the_other_sweep_leaves_is_used(tmp_path: Path) -> None:
    """The shorter one ends; the longer one has all CPUs soon after."""
    cluster = Cluster(4)
    with simulated(tmp_path, cluster) as make:
        short, long = make("short", num_trials=8), make("long", num_trials=400)
        while not short.tune.is_finished():
            run(short, long, until_s=cluster.now + 1.0)
        run(long, until_s=cluster.now + 10.0)
        assert cluster.taken[long.processes] == 4


def test_an_endpoint_that_waits_gets_the_next_process_that_is_free(tmp_path: Path) -> None:
    """Of four CPUs a sweep has all; a deployment asks for one."""
    cluster = Cluster(4)
    with simulated(tmp_path, cluster) as make:
        sweep = make(num_trials=80, lasts_s=lambda _number: 5.0)
        run(sweep, until_s=20.0)
        cluster.asked = 1
        run(sweep, until_s=20.0 + 5.0 + 5.0)
        assert (cluster.asked, cluster.held) == (0, 1)
        run(sweep, until_s=60.0)
        assert cluster.taken[sweep.processes] == 3
        assert run(sweep)
        assert sweep.ended == 80


def test_trials_are_handed_out_without_asking_for_their_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune would ask Ray's head, which takes longer than a short trial on a busy cluster."""
    with simulated(tmp_path, Cluster(2)) as make:
        sweep = make(num_trials=5)
        for name in ("get_trainable_cls", "validate_trainable"):
            monkeypatch.delattr(experiment.trial, name)
        assert run(sweep)
        assert [record.status for record in sweep.trials.records] == ["complete"] * 5


def test_the_patches_of_several_sweeps_in_a_process_end_with_the_last_one() -> None:
    """The first one to begin is the first one to end."""
    original = TuneController._maybe_reuse_cached_actor
    first, second = prepared_tune(), prepared_tune()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert TuneController._maybe_reuse_cached_actor is not original
    second.__exit__(None, None, None)
    assert TuneController._maybe_reuse_cached_actor is original


# The replaced methods of Tune: each test fails once Ray no longer needs its replacement, or has changed around it.


def test_tune_still_ends_a_sweep_where_the_memory_monitor_kills_a_process() -> None:
    task = TrackedActorTask(TrackedActor(1))
    with pytest.raises(RuntimeError, match="Caught unexpected exception"):
        RayActorManager._actor_task_failed(None, task, OutOfMemoryError("Task was killed"))
    told: list[BaseException] = []
    actor = TrackedActor(1, on_error=lambda _actor, error: told.append(error))
    manager = SimpleNamespace(_failed_actor_ids=set(), _cleanup_actor=lambda tracked_actor: None)
    with prepared_tune():
        RayActorManager._actor_task_failed(manager, TrackedActorTask(actor), OutOfMemoryError("Task was killed"))
    assert isinstance(told[0], RayActorError)


def test_tune_still_runs_all_short_trials_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process takes the trials of those that are starting."""
    monkeypatch.setattr(tuner, "patched_tune", lambda **_: nullcontext())
    cluster = Cluster(4, held=3)
    with simulated(tmp_path, cluster) as make:
        sweep = make(num_trials=100, lasts_s=lambda _number: 0.5)
        run(sweep, until_s=20.0)
        cluster.held = 0
        assert run(sweep)
        assert len(sweep.processes.used) == 1


@pytest.mark.parametrize(
    ("method", "digest"),
    [
        (RayActorManager._actor_task_failed, "acbe35f64073"),
        (TuneController._maybe_reuse_cached_actor, "c045f0ddd48f"),
        (TuneController._maybe_add_actors, "dda4565e2ec3"),
        (TuneController._maybe_cache_trial_actor, "b93826d25e5e"),
        (TuneController._cleanup_cached_actors, "338aa7b5cdaf"),
        (TuneController._maybe_update_trial_queue, "a3018c74ad97"),
        (TuneController._unstage_trial_with_resources, "0eb6f9e7eb71"),
        (TuneController.stop_trial, "25349a9316e9"),
        (SearchGenerator.create_trial_if_possible, "083c4c4acdd7"),
        (Trial.get_trainable_cls, "948f61fc8fb6"),
        (Trial.get_json_state, "ed697ebaada3"),
        (Trial.set_ray_actor, "d35444371003"),
    ],
)
def test_what_is_replaced_or_relied_upon_is_what_it_was(method: object, digest: str) -> None:
    """Where this fails: read the new source, see whether the replacement and ``Handout`` are right, and update it."""
    source = inspect.getsource(method)  # type: ignore[arg-type]
    assert hashlib.sha256(source.encode()).hexdigest()[:12] == digest
