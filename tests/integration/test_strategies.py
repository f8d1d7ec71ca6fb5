"""FSDP on workers: the curve of one process, and sharded checkpoints that other numbers of workers go on from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from saved_weights import load_weights

from raymlops.cluster.capacity import Places
from raymlops.cluster.placement import WorkerRequest
from raymlops.config.load import load_data
from raymlops.project import Project, bind
from raymlops.tracking.client import tracker
from raymlops.training.run import train

if TYPE_CHECKING:
    from pathlib import Path

    from raymlops.records import RunRecord

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

STEPS = 12


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


def bytelm(storage: Path, **fields: Any) -> Project:
    config = {"layers": 2, "heads": 2, "width": 32, "block": 32, "corpus_bytes": 60_000}
    section = {
        "epochs": 1,
        "batch_size": 10,  # by 3 workers: 4, 3 and 3 rows
        "max_steps": STEPS,
        "lr": 3e-3,
        "schedule": "constant",  # which other does not follow from the number of steps
        "clip_norm": 1.0,
        "log_every_steps": 1,
        "cpus_per_worker": 0.5,
        "threads_per_worker": 1,
        "shard_min_params": 1000,
    }
    return bind(
        load_data(
            {
                "project": {"name": "bytelm"},
                "recipe": {"import": "raymlops.recipes.bytelm:ByteLM", "config": config},
                "train": section | fields,
                "storage": {"path": str(storage)},
            }
        )
    )


def fit(project: Project, *, resume: str | None = None) -> RunRecord:
    room = Places(WorkerRequest(1, 0.5, purpose="train.num_workers"))
    return train(project, room=room, resume=resume)


def losses(project: Project, record: RunRecord) -> dict[int, float]:
    history = tracker(project.spec).client.get_metric_history(record.run_id, "train/loss")
    return {point.step: point.value for point in reversed(history)}  # the kept model's comes last, at the last step


@pytest.fixture(scope="module")
def alone(storage: Path) -> dict[int, float]:
    project = bytelm(storage, num_workers=0)
    return losses(project, fit(project))


@pytest.fixture(scope="module")
def sharded(storage: Path) -> RunRecord:
    """Return a run of two workers that did half of the steps."""
    return fit(bytelm(storage, num_workers=2, strategy="fsdp", max_steps=STEPS // 2))


def test_sharded_training_gives_the_curve_of_one_process(
    storage: Path, alone: dict[int, float], sharded: RunRecord
) -> None:
    """Every step's loss of two workers is within 1e-3 of training in this process."""
    found = losses(bytelm(storage), sharded)
    for step in range(1, STEPS // 2 + 1):
        assert found[step] == pytest.approx(alone[step], rel=1e-3), step
    assert sharded.num_workers == 2


@pytest.mark.soak
def test_ddp_gives_the_curve_of_one_process(storage: Path, alone: dict[int, float]) -> None:
    project = bytelm(storage, num_workers=2, strategy="ddp")
    assert losses(project, fit(project)) == pytest.approx(alone, rel=1e-3)


@pytest.mark.soak
@pytest.mark.parametrize("workers", [3, 1])
def test_a_sharded_checkpoint_goes_on_with_other_workers(
    storage: Path, alone: dict[int, float], sharded: RunRecord, workers: int
) -> None:
    """Other numbers of workers go on from the shards to the same losses and to whole weights."""
    run = sharded if workers == 3 else fit(bytelm(storage, num_workers=2, strategy="fsdp", max_steps=STEPS // 2))
    longer = bytelm(storage, num_workers=workers, strategy="fsdp")
    again = fit(longer, resume=run.run_id)
    assert again.run_id == run.run_id
    assert again.num_workers == workers
    assert losses(longer, again) == pytest.approx(alone, rel=1e-3)
    weights, _ = load_weights(again.weights_uri)
    whole = longer.recipe(state={}).model().state_dict()
    assert {name: tensor.shape for name, tensor in weights.items()} == {
        name: tensor.shape for name, tensor in whole.items()
    }
