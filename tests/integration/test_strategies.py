"""DDP and FSDP on workers: one curve, and sharded checkpoints that other numbers of workers go on from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from raymlops.cluster.capacity import Places
from raymlops.config.load import load_data
from raymlops.project import Project, bind
from raymlops.tracking.client import tracker
from raymlops.training.run import load_weights, train

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
    room = Places(cpus_per_worker=0.5, gpus_per_worker=0.0, purpose="train.num_workers")
    return train(project, room=room, resume=resume)


def losses(project: Project, record: RunRecord) -> dict[int, float]:
    history = tracker(project.spec).client.get_metric_history(record.run_id, "train/loss")
    return {point.step: point.value for point in history}


@pytest.fixture(scope="module")
def alone(storage: Path) -> dict[int, float]:
    project = bytelm(storage, num_workers=0)
    return losses(project, fit(project))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_both_strategies_give_one_curve(storage: Path, alone: dict[int, float], strategy: str) -> None:
    """Every step's loss of two workers is within 1e-3 of training in this process."""
    project = bytelm(storage, num_workers=2, strategy=strategy)
    record = fit(project)
    assert losses(project, record) == pytest.approx(alone, rel=1e-3)
    assert record.num_workers == 2


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.soak), 3])
def test_a_sharded_checkpoint_goes_on_with_other_workers(storage: Path, alone: dict[int, float], workers: int) -> None:
    """Two workers train half the steps; one or three go on from their shards to the same losses and whole weights."""
    first = bytelm(storage, num_workers=2, strategy="fsdp", max_steps=STEPS // 2, schedule="constant")
    record = fit(first)
    longer = bytelm(storage, num_workers=workers, strategy="fsdp", max_steps=STEPS, schedule="constant")
    again = fit(longer, resume=record.run_id)
    assert again.run_id == record.run_id
    assert again.num_workers == workers
    straight = bytelm(storage, num_workers=0, schedule="constant", epochs=1)
    expected = losses(straight, fit(straight))
    assert losses(longer, again) == pytest.approx(expected, rel=1e-3)
    weights, _ = load_weights(again.weights_uri)
    whole = longer.recipe(state={}).model().state_dict()
    assert {name: tensor.shape for name, tensor in weights.items()} == {
        name: tensor.shape for name, tensor in whole.items()
    }
