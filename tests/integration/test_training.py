"""Training on Ray workers: the same numbers for any number of them, one MLflow run, errors as ours."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from saved_weights import load_weights
from supervised import left_behind

from raymlops.cluster.capacity import Places
from raymlops.cluster.placement import WorkerRequest
from raymlops.config.load import load_data
from raymlops.errors import NonFiniteError, RecipeError
from raymlops.project import Project, bind
from raymlops.tracking.client import tracker
from raymlops.training.run import train as run_training

if TYPE_CHECKING:
    from pathlib import Path

    from raymlops.records import RunRecord
    from raymlops.training.events import Event

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


def project(
    storage: Path, *, recipe: str = "tiny:Tiny", config: dict[str, Any] | None = None, **fields: Any
) -> Project:
    section = {"epochs": 2, "batch_size": 128, "lr": 1e-2, "threads_per_worker": 1, "cpus_per_worker": 0.5}
    return bind(
        load_data(
            {
                "project": {"name": "tiny"},
                "recipe": {"import": recipe, "config": config or {}},
                "train": section | fields,
                "storage": {"path": str(storage)},
            }
        )
    )


def train(of: Project, **rest: Any) -> RunRecord:
    """Train with whatever room this Ray has."""
    section = of.spec.train
    room = Places(WorkerRequest(1, section.cpus_per_worker, purpose="train.num_workers"))
    return run_training(of, room=room, **rest)


@pytest.fixture(scope="module")
def records(storage: Path) -> dict[int, RunRecord]:
    """Return a run in this process, and one on two and on three workers."""
    return {workers: train(project(storage, num_workers=workers)) for workers in (0, 2, 3)}


def test_every_number_of_workers_reaches_the_same_losses(records: dict[int, RunRecord]) -> None:
    """Losses of 2 and 3 workers are within 1e-3 relative of training in this process, at one global batch."""
    alone = records[0].metrics
    for workers in (2, 3):
        for name in ("train/loss", "validation/loss"):
            assert records[workers].metrics[name] == pytest.approx(alone[name], rel=1e-3), (workers, name)


def test_every_validation_row_counts_once(storage: Path, records: dict[int, RunRecord]) -> None:
    """501 rows divide by neither 2 nor 4096; the recipe's count of them is 501 for any number of workers."""
    counts = {workers: record.metrics["validation/rows"] for workers, record in records.items()}
    assert counts == {0: 501, 2: 501, 3: 501}


@pytest.mark.soak
def test_a_split_smaller_than_the_world_counts_once(storage: Path) -> None:
    """Two validation rows and a last global batch of two rows on three workers: a rank without rows takes part."""
    small = {"validation_rows": 2, "train_rows": 130}
    values = [train(project(storage, config=small, num_workers=workers, epochs=1)).metrics for workers in (0, 3)]
    assert [value["validation/rows"] for value in values] == [2, 2]
    assert values[1]["validation/loss"] == pytest.approx(values[0]["validation/loss"], rel=1e-3)


def test_the_run_holds_what_the_driver_heard(storage: Path, records: dict[int, RunRecord]) -> None:
    """Events of a worker reach the one MLflow run with their steps, and its weights load."""
    record = records[2]
    client = tracker(project(storage).spec)
    run = client.run(record.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["raymlops.num_workers"] == "2"
    history = client.client.get_metric_history(record.run_id, "validation/loss")
    # ceil(2000 / 128) = 16 steps an epoch
    assert [point.step for point in history][:2] == [16, 32]
    assert run.data.metrics["validation/loss"] == record.metrics["validation/loss"]
    weights, state = load_weights(record.weights_uri)
    assert weights["layers.0.weight"].shape == (16, 7)
    assert state["colours"] == ["blue", "green", "red"]


def test_a_recipe_error_on_a_worker_is_a_recipe_error_here(storage: Path) -> None:
    """What a worker raises arrives as it is, naming method and line; the run is FAILED with it, and not tried again."""
    broken = project(storage, recipe="tiny:RaisesInStep", num_workers=2)
    seen: list[Event] = []
    with pytest.raises(RecipeError, match=r"RaisesInStep\.loss\(\) raised ValueError: step 3.*tiny\.py:\d+"):
        train(broken, on_event=seen.append)
    assert [event.kind for event in seen].count("restart") == 0
    run = _last_run(broken)
    assert run.info.status == "FAILED"
    assert "step 3" in run.data.tags["raymlops.reason"]


@pytest.mark.soak
def test_a_refused_recipe_leaves_neither_a_run_nor_its_workers(tmp_path: Path) -> None:
    """Their processes start beside the checks, and end with them."""
    refused = project(tmp_path, recipe="broken:RaisesInModel", num_workers=2)
    with pytest.raises(RecipeError, match=r"RaisesInModel\.model\(\) raised"):
        train(refused)
    assert tracker(refused.spec).client.get_experiment_by_name(refused.spec.experiment) is None
    deadline = time.monotonic() + 10
    while left_behind() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left_behind() == []


@pytest.mark.soak
def test_a_pipeline_of_ray_data_runs_before_the_workers_take_its_places(storage: Path) -> None:
    """Two workers take both CPUs of the cluster."""
    record = train(project(storage, recipe="sourced:FromLazyRay", num_workers=2, cpus_per_worker=1))
    assert record.num_workers == 2


def test_what_waits_for_the_places_of_workers_is_read_from_ray() -> None:
    """A task, and a placement group of this job; a task that no node can hold waits for none of them."""
    (node,) = ray.nodes()
    places, mine = Places(WorkerRequest(1, 1)), placement_group([{"CPU": 1}])
    assert mine.wait(30)
    key, deadline = mine.id.hex(), time.monotonic() + 30
    other = placement_group([{"CPU": 2}])
    assert places.blocks(key)
    remove_placement_group(other)
    larger = ray.remote(num_cpus=64)(lambda: None).remote()
    assert not places.blocks(key)
    task = ray.remote(num_cpus=2)(lambda: None).remote()
    waiting = ""
    while not (waiting and places.blocks(key)) and time.monotonic() < deadline:
        time.sleep(0.1)
        waiting = places.waiting(workers=[node["NodeID"]])
    assert waiting == "Ray tasks or actors that request 2 CPU wait for room; the workers hold 1 CPU of 2 CPU"
    assert places.blocks(key)
    assert places.waiting(workers=[]) == ""
    for each in (task, larger):
        ray.cancel(each)
    remove_placement_group(mine)


def test_nan_in_training_names_the_step(storage: Path) -> None:
    """A loss that becomes NaN on one worker ends the run with epoch, step and learning rate."""
    with pytest.raises(NonFiniteError, match=r"epoch 1, step 3, learning rate 0\.0"):
        train(project(storage, recipe="tiny:NanInStep", num_workers=2))


@pytest.mark.soak
def test_a_display_that_fails_is_raised_and_costs_no_metrics(storage: Path, records: dict[int, RunRecord]) -> None:
    """It is called from a thread, whose errors nobody sees; the training ends first and all its metrics are there.

    Its one worker reaches what this process reaches.
    """

    def fail(event: Event) -> None:
        if event.kind == "epoch":
            raise OSError(f"no terminal for epoch {event.epoch}")

    shown = project(storage, num_workers=1)
    with pytest.raises(OSError, match="no terminal for epoch 1"):
        train(shown, on_event=fail)
    run = _last_run(shown)
    assert run.info.status == "FAILED"
    history = tracker(shown.spec).client.get_metric_history(run.info.run_id, "validation/loss")
    assert len(history) == 2
    assert history[-1].value == pytest.approx(records[0].metrics["validation/loss"], rel=1e-3)
    assert run.data.metrics["validation/rows"] == 501


@pytest.mark.soak
def test_interrupt_ends_the_workers_and_marks_the_run_killed(storage: Path) -> None:
    """Ctrl-C in the middle of a training ends the workers, marks the run KILLED and raises KeyboardInterrupt."""
    import os
    import signal

    from ray.util.state import list_actors

    long = project(storage, num_workers=1, epochs=100_000)
    fired = threading.Event()

    def interrupt(event: Event) -> None:
        if event.kind == "step" and not fired.is_set():
            fired.set()
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(long, on_event=interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    assert _last_run(long).info.status == "KILLED"
    assert not list_actors(filters=[("state", "=", "ALIVE"), ("class_name", "=", "RayTrainWorker")])


def _last_run(project: Project) -> Any:
    client = tracker(project.spec).client
    experiment = client.get_experiment_by_name(project.spec.experiment)
    return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"], max_results=1)[0]
