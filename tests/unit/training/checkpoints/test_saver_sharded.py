"""Sharded checkpoints through the saver: all ranks write one folder, and agree on what became of it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import checkpoint_jobs as jobs
import pytest
import rank_jobs
import torch
from ranks import ranks
from saved_weights import load_weights
from snapshots import folder_saver, snapshot
from spread import places

from raymlops.config.paths import local_path
from raymlops.storage import filesystem
from raymlops.storage.manifest import BLOCK_BYTES
from raymlops.training.checkpoints.format import trained
from raymlops.training.checkpoints.latest import recall

if TYPE_CHECKING:
    from pathlib import Path

    from fake_s3 import FakeS3

MORE_READS = [(2, {1: 1, 4: 2}), (4, {2: 1, 4: 1})]
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "word"}


def folders(place: str) -> list[str]:
    return sorted(name for name, files in filesystem.listing(place).items() if files)


def equal(found: Any, expected: Any) -> bool:
    return all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_two_ranks_write_what_three_and_one_and_a_bundle_read(place: str) -> None:
    """The last two of three are kept; every rank knows which one is best; nothing else lies there."""
    wrote = ranks().run(2, partial(jobs.save, place=place, environment=ENVIRONMENT))
    names = ["step-00000002-aaa-2", "step-00000003-aaa-3"]
    assert [found["kept"] for found in wrote] == [names, names]
    assert {found["best"] for found in wrote} == {filesystem.join(place, names[1])}
    assert folders(place) == names
    assert filesystem.listing(place)[names[1]] == {
        ".metadata", "__0_0.distcp", "__1_0.distcp", "manifest.json", "state.json", "trainer.pt"
    }  # fmt: skip

    recalled = recall(place, metric="loss", mode="min")
    assert recalled.uri == wrote[0]["last"]
    expected = wrote[0]["states"][-1]
    weights, fit = load_weights(recalled.uri)
    assert equal(weights, expected)
    assert fit == {"mean": 1.5}
    model = rank_jobs.Blocks(rank_jobs.Blocks.Config()).model()
    with trained(recalled.uri) as checkpoint:
        checkpoint.load_into(model)
        assert (checkpoint.fit, checkpoint.step) == (fit, 3)
        with pytest.raises(RuntimeError, match=r"Missing key|Unexpected key|size mismatch"):
            checkpoint.load_into(torch.nn.Linear(2, 2))
    assert equal(model.state_dict(), expected)
    losses = []
    for world in (1, 3):
        for found in ranks().run(world, partial(jobs.restored, uri=recalled.uri, environment=ENVIRONMENT)):
            assert (found["error"], found["step"]) == ("", 3)
            assert equal(found["state"], expected)
        losses.append(found["losses"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_rank_that_cannot_write_is_heard_by_all(tmp_path: Path) -> None:
    """Rank 1's part of step 2 fails: none waits for it, nothing of that checkpoint is left, the next is whole."""
    (tmp_path / "step-00000002-aaa-2").mkdir()
    (tmp_path / "step-00000002-aaa-2" / ".part-1").write_text("in the way")
    wrote = ranks().run(2, partial(jobs.save, place=str(tmp_path)))
    assert [found["failures"] for found in wrote] == [1, 1]
    assert [found["error"] for found in wrote] == ["", ""]
    assert folders(str(tmp_path)) == ["step-00000001-aaa-1", "step-00000003-aaa-3"]


def test_a_run_cannot_end_without_its_last_shards(tmp_path: Path) -> None:
    """Each rank raises the same, so that none goes on alone."""
    (tmp_path / "step-00000003-aaa-3").mkdir()
    (tmp_path / "step-00000003-aaa-3" / ".part-1").write_text("in the way")
    wrote = ranks().run(2, partial(jobs.save, place=str(tmp_path)))
    errors = [found["error"] for found in wrote]
    assert errors[0] == errors[1]
    assert "StorageError: the best checkpoint of step 3 could not be written" in errors[0]
    assert {found["last"] for found in wrote} == {f"{tmp_path}/step-00000002-aaa-2"}


def test_whatever_goes_wrong_on_rank_0_is_heard_by_all(tmp_path: Path) -> None:
    """Also a bug of ours: the others wait for its word, and a collective's timeout is half an hour."""
    wrote = ranks().run(2, partial(jobs.save, place=str(tmp_path), keep="no number"))
    errors = [found["error"] for found in wrote]
    assert errors[0] == errors[1]
    assert errors[0].startswith("TrainingError: the checkpoint of step 1 failed: TypeError")
    assert folders(str(tmp_path)) == []


def test_infinity_in_one_shard_is_heard_by_all(tmp_path: Path) -> None:
    """Whatever the policy for the disk, and nothing is written."""
    wrote = ranks().run(2, partial(jobs.save, place=str(tmp_path), spoiled_step=2))
    for found in wrote:
        assert found["error"].startswith("NonFiniteError")
        assert found["last"] == f"{tmp_path}/step-00000001-aaa-1"
    assert folders(str(tmp_path)) == ["step-00000001-aaa-1"]


def test_infinity_that_was_there_from_the_start_is_saved(tmp_path: Path) -> None:
    """In a buffer that every rank holds and in one rank's shard; what comes to it is refused by all."""
    wrote = ranks().run(2, partial(jobs.save_infinite, place=str(tmp_path)))
    assert [found[0] for found in wrote] == ["saved", "saved"]
    assert wrote[0][1] == wrote[1][1]
    assert wrote[0][1].startswith(
        "a state with NaN or infinity is not saved as a checkpoint; found in model.first.bias"
    )
    weights, _ = load_weights(f"{tmp_path}/step-00000001-aaa-1")
    assert weights["mask"].tolist() == [float("-inf")] * 3


@pytest.mark.parametrize("file", places(["__1_0.distcp", "__0_0.distcp", ".metadata", "trainer.pt"], 2))
def test_damage_in_any_shard_is_found_by_all(tmp_path: Path, file: str) -> None:
    """Each rank hashes a part of the shards, and whatever it unpickles itself; all refuse."""
    wrote = ranks().run(2, partial(jobs.save, place=str(tmp_path), steps=1))
    path = local_path(wrote[0]["last"]) / file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for found in ranks().run(2, partial(jobs.restored, uri=wrote[0]["last"])):
        assert f"{file} is damaged" in found["error"]


def test_a_missing_shard_is_found_before_a_run_goes_on(tmp_path: Path) -> None:
    """The checkpoint before it is taken."""
    wrote = ranks().run(2, partial(jobs.save, place=str(tmp_path)))
    (local_path(wrote[0]["last"]) / "__1_0.distcp").unlink()
    recalled = recall(str(tmp_path), metric="loss", mode="min")
    assert recalled.uri == f"{tmp_path}/step-00000002-aaa-2"
    assert "__1_0.distcp is damaged: expected a file of" in recalled.set_aside[0]


@pytest.mark.parametrize(
    ("wrote", "reads"), [(2, {2: 1, 3: 2}), *(pytest.param(*each, marks=pytest.mark.soak) for each in MORE_READS)]
)
def test_shards_are_read_by_range(s3: FakeS3, wrote: int, reads: dict[int, int]) -> None:
    """As many ranks, or fewer, read each byte once; others read the shards that theirs overlap: never all of it each.

    The keys of ``reads`` are numbers of ranks, its values how often they read the whole together.
    """
    job = partial(jobs.save_large, place=s3.uri("bucket/run"), steps=1, environment=ENVIRONMENT)
    uri = ranks().run(wrote, job)[0]
    shards = {path: len(data) for path, data in s3.objects.items() if path.endswith(".distcp")}
    assert len(shards) == wrote
    assert all(size > 2 * BLOCK_BYTES for size in shards.values())
    for world, times in reads.items():
        s3.sent.clear()
        found = ranks().run(world, partial(jobs.restored_large, uri=uri, environment=ENVIRONMENT))
        assert [error for error, _ in found] == [""] * world
        assert all(ticks > 3 for _, ticks in found)
        assert sum(s3.sent[path] for path in shards) <= times * sum(shards.values()) + world * BLOCK_BYTES
    s3.sent.clear()
    ticks: list[bool] = []
    with trained(uri, on_progress=lambda: ticks.append(True)) as checkpoint:
        checkpoint.load_into(torch.nn.Sequential(*(torch.nn.Linear(1024, 1024, bias=False) for _ in range(6))))
    assert len(ticks) > 3
    assert sum(s3.sent[path] for path in shards) < 0.8 * sum(shards.values())  # a third is the model's


def test_shards_that_nodes_replicate_are_written_once(tmp_path: Path) -> None:
    """By the ranks of one node; four ranks of two nodes read them again, and two of one."""
    job = partial(jobs.save_large, place=str(tmp_path), steps=1, environment={}, per_node=2)
    uri = ranks().run(4, job)[0]
    shards = [path for path in local_path(uri).iterdir() if path.suffix == ".distcp"]
    assert sum(path.stat().st_size for path in shards) < 1.1 * 3 * 6 * 4 * 1024**2
    for world, per_node in ((4, 2), (2, None)):
        found = ranks().run(world, partial(jobs.restored_large, uri=uri, environment={}, per_node=per_node))
        assert [error for error, _ in found] == [""] * world


@pytest.mark.parametrize(
    ("world", "damage"), places([(1, "changed"), (2, "changed"), (3, "changed"), (4, "cut"), (2, "cut")], 2)
)
def test_a_damaged_shard_is_set_aside_where_it_is_read(tmp_path: Path, world: int, damage: str) -> None:
    """The search compares sizes alone; all ranks hear of the damage, and the next attempt finds the one before.

    A file may also shrink after the search.
    """
    uri = ranks().run(2, partial(jobs.save_large, place=str(tmp_path), steps=2, environment={}))[0]
    path = local_path(uri) / "__1_0.distcp"
    data = bytearray(path.read_bytes())
    size, half = len(data), len(data) // 2
    if damage == "changed":
        data[half] ^= 1
        path.write_bytes(data)
    assert recall(str(tmp_path), metric="loss", mode="min", digests=False).uri == uri
    if damage == "cut":
        path.write_bytes(data[:half])
    expected = "SHA-256" if damage == "changed" else f"{size} bytes, got {half} bytes"
    for error, _ in ranks().run(world, partial(jobs.restored_large, uri=uri, environment={})):
        assert error.startswith(f"DamagedError: {uri!r}: __1_0.distcp is damaged: expected {expected}")
    found = recall(str(tmp_path), metric="loss", mode="min", digests=False)
    assert found.uri == f"{tmp_path}/step-00000001-aaa-1"


def test_damage_that_any_rank_finds_is_set_aside(tmp_path: Path) -> None:
    """Whatever keeps the first one from reading the checkpoint."""
    damaged = tmp_path / "step-1"
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{broken")
    job = partial(jobs.restored_weights, uris=[str(tmp_path / "gone"), str(damaged)])
    assert all(found.startswith(f"DamagedError: {str(damaged)!r}") for found in ranks().run(2, job))
    assert [path.name for path in tmp_path.iterdir()] == ["damaged-step-1"]


def test_a_whole_checkpoint_is_read_once_a_node(s3: FakeS3) -> None:
    """Three ranks on two nodes fetch it twice; damage is heard by all."""
    saver = folder_saver(s3.uri("bucket/run"))
    saver.save(snapshot(1, weight=3.0), best=True, last=True)
    saver.wait()
    (path,) = (path for path in s3.objects if path.endswith("model.safetensors"))
    job = partial(jobs.restored_whole, uri=saver.best_uri, nodes=[0, 1, 0], environment=ENVIRONMENT)
    s3.sent.clear()
    assert ranks().run(3, job) == [[[3.0, 3.0]]] * 3
    assert s3.sent[path] == 2 * len(s3.objects[path])
    s3.objects[path] = s3.objects[path][:-1] + b"?"
    for found in ranks().run(3, job):
        assert "DamagedError" in found
        assert "model.safetensors is damaged" in found
