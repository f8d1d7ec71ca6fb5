"""The end of a run, where the best checkpoint is read again: once a node, and set aside where it is damaged."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from loop_jobs import evaluated_at_end
from ranks import ranks

from raymlops.training.checkpoints.latest import recall

if TYPE_CHECKING:
    from pathlib import Path

    from fake_s3 import FakeS3

ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "word"}


@pytest.mark.parametrize("nodes", [[0, 0, 0], [0, 1, 1]])
def test_the_best_weights_are_read_once_a_node(tiny_project: Any, s3: FakeS3, nodes: list[int]) -> None:
    """Not by each rank, and what is not weights by none."""
    project = tiny_project(num_workers=3).to_dict()
    job = partial(evaluated_at_end, nodes=nodes, environment=ENVIRONMENT)
    found = ranks().run(3, job, project, s3.uri("bucket/run"))
    assert found[0][0] == found[1][0] == found[2][0]
    assert "test/loss" in found[0][0]
    (size,) = {len(data) for path, data in s3.objects.items() if path.endswith("model.safetensors")}
    sent = {path.rpartition("/")[2]: count for path, count in s3.sent.items() if "/step-" in path and count}
    assert sent["model.safetensors"] == len(set(nodes)) * size
    assert "trainer.pt" not in sent


@pytest.mark.parametrize(("strategy", "workers"), [("ddp", 1), ("ddp", 2), ("fsdp", 2)])
def test_damaged_weights_are_set_aside(tiny_project: Any, tmp_path: Path, strategy: str, workers: int) -> None:
    """Whole or in shards they would not be registered: all ranks say so, and the next attempt keeps the second best."""
    project = tiny_project(num_workers=workers, strategy=strategy, epochs=3, keep_best=2)
    for error, _ in ranks().run(workers, partial(evaluated_at_end, damaging=True), project.to_dict(), str(tmp_path)):
        assert str(error).startswith("DamagedError: ")
    (damaged,) = tmp_path.glob("damaged-*")
    section = project.spec.train
    found = recall(str(tmp_path), metric=section.metric, mode=section.mode, digests=False)
    assert found.kept.best not in {None, damaged.name.removeprefix("damaged-")}
