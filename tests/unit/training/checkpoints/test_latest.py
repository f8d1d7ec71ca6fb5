"""A run goes on from the newest checkpoint that verifies, whatever a crash left behind."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from snapshots import folder_saver, snapshot, train_a_while

from raymlops.errors import StorageError, UsageError
from raymlops.storage import filesystem, manifest
from raymlops.training.checkpoints.latest import Recalled, recall
from raymlops.training.checkpoints.retention import Kept

if TYPE_CHECKING:
    from pathlib import Path

    from fake_s3 import FakeS3


def found(place: str, *, repair: bool = True) -> Recalled:
    return recall(place, metric="loss", mode="min", repair=repair)


def saved(place: str, losses: list[float], **options: object) -> list[str]:
    """Train a while and return the names of what was kept, oldest first."""
    saver = folder_saver(place, **({"keep_checkpoints": 3} | options))
    train_a_while(saver, losses)
    return [entry.name for entry in saver.kept.entries]


def damage(place: str, name: str, *, file: str = "model.safetensors") -> None:
    uri = filesystem.join(place, name, file)
    data = bytearray(filesystem.read_bytes(uri))
    data[-1] ^= 1
    filesystem.write_bytes(uri, bytes(data))


def folders(place: str) -> list[str]:
    return sorted(name for name, files in filesystem.listing(place).items() if files)


def pointer(place: str) -> Kept:
    kept = Kept.from_json(filesystem.read_bytes(filesystem.join(place, "index.json")))
    assert kept is not None
    return kept


def test_where_nothing_is_a_run_begins(place: str) -> None:
    """With a claim, so that an attempt that begins later replaces this one."""
    recalled = found(place)
    assert (recalled.uri, recalled.state, recalled.set_aside, recalled.kept.entries) == (None, None, (), ())
    assert pointer(place).claim == recalled.kept.claim != ""


def test_the_last_one_is_found(place: str) -> None:
    """With its state; what is kept and which is best are as they were."""
    names = saved(place, [2.0, 1.0])
    recalled = found(place)
    assert recalled.uri == filesystem.join(place, names[-1])
    assert recalled.state is not None
    assert (recalled.state.step, recalled.state.best_epoch) == (20, 2)
    assert [entry.name for entry in recalled.kept.entries] == names
    assert (recalled.kept.best, recalled.kept.last) == (names[-1], names[-1])
    assert recalled.set_aside == ()


def test_looking_changes_nothing(place: str) -> None:
    """Without repair files, pointer and claim stay, whatever is wrong."""
    names = saved(place, [2.0, 1.0])
    damage(place, names[-1])
    filesystem.write_bytes(filesystem.join(place, "step-00000099-bbb-1", "model.safetensors"), b"x")
    before = filesystem.listing(place), pointer(place)
    recalled = found(place, repair=False)
    assert recalled.uri == filesystem.join(place, names[-2])
    assert "model.safetensors is damaged" in recalled.set_aside[0]
    assert (filesystem.listing(place), pointer(place)) == before


@pytest.mark.parametrize("file", ["model.safetensors", "trainer.pt", "state.json", "manifest.json"])
def test_a_damaged_newest_is_set_aside_and_named(place: str, file: str) -> None:
    """The one before is used; the damaged one is kept for whoever wants to look, and not looked at again."""
    names = saved(place, [2.0, 1.0])
    damage(place, names[-1], file=file)
    recalled = found(place)
    assert recalled.uri == filesystem.join(place, names[-2])
    assert len(recalled.set_aside) == 1
    assert names[-1] in recalled.set_aside[0]
    aside = [name for name, files in filesystem.listing(place).items() if files and manifest.is_set_aside(name, files)]
    assert len(aside) == 1
    assert found(place).set_aside == ()
    assert names[-1] not in [entry.name for entry in recalled.kept.entries]


def test_a_missing_file_is_damage(place: str) -> None:
    """As of a shard that was lost."""
    names = saved(place, [2.0, 1.0])
    filesystem.delete(filesystem.join(place, names[-1], "trainer.pt"))
    recalled = found(place)
    assert recalled.uri == filesystem.join(place, names[-2])
    assert "trainer.pt is damaged: expected a file of" in recalled.set_aside[0]


def test_where_all_are_damaged_a_run_begins(place: str) -> None:
    """Each one is named."""
    names = saved(place, [2.0, 1.0])
    for name in names:
        damage(place, name)
    recalled = found(place)
    assert (recalled.uri, recalled.state, recalled.kept.entries) == (None, None, ())
    assert len(recalled.set_aside) == len(names)


def test_a_lost_best_gives_its_place_to_the_next(place: str) -> None:
    """Losses 3, 1, 2 at steps 10, 20, 30: without the one at 20 the best that is there is at 30, whose report is 3."""
    names = saved(place, [3.0, 1.0, 2.0])
    assert names == ["step-00000020-aaa-4", "step-00000025-aaa-5", "step-00000030-aaa-6"]
    damage(place, names[0])
    recalled = found(place)
    assert recalled.uri == filesystem.join(place, names[2])
    assert recalled.kept.best == names[2]
    assert recalled.state is not None
    assert (recalled.state.best_epoch, recalled.state.best_value, recalled.state.waited) == (3, 2.0, 0)
    assert names[0] in recalled.set_aside[0]


def test_a_lost_best_without_another_is_none(place: str) -> None:
    """What is there was written in mid-epoch: the next report is the best."""
    saver = folder_saver(place)
    saver.save(snapshot(10, losses=[1.0], report=True), best=True, last=False)
    saver.save(snapshot(15, losses=[1.0]), best=False, last=False)
    saver.wait()
    damage(place, "step-00000010-aaa-1")
    recalled = found(place)
    assert recalled.uri == filesystem.join(place, "step-00000015-aaa-2")
    assert recalled.kept.best is None
    assert recalled.state is not None
    assert (recalled.state.best_epoch, recalled.state.best_value) == (0, None)


@pytest.mark.parametrize("text", [b"", b'{"format_version": 2, "best": "step-', b"\0" * 100, None])
def test_a_lost_pointer_is_rebuilt(place: str, text: bytes | None) -> None:
    """From what the checkpoints say: losses 3, 1, 2, so that the one at step 20 is best."""
    names = saved(place, [3.0, 1.0, 2.0])
    before = pointer(place)
    index = filesystem.join(place, "index.json")
    filesystem.delete(index) if text is None else filesystem.write_bytes(index, text)
    recalled = found(place)
    assert recalled.uri == filesystem.join(place, names[-1])
    assert (recalled.kept.entries, recalled.kept.best, recalled.kept.last) == (before.entries, before.best, before.last)
    assert pointer(place) == recalled.kept


def test_a_newer_pointer_is_left_alone(place: str) -> None:
    """It is no damage: nothing is touched."""
    saved(place, [1.0])
    filesystem.write_bytes(filesystem.join(place, "index.json"), b'{"format_version": 3}')
    before = filesystem.listing(place)
    with pytest.raises(StorageError, match="has format 3"):
        found(place)
    assert filesystem.listing(place) == before


def test_one_that_was_whole_before_the_pointer_moved_counts(place: str) -> None:
    """Killed in between: it is the newest, and as its state says that it is the best, it is that too."""
    saver = folder_saver(place)
    saver.save(snapshot(10, losses=[2.0], report=True), best=True, last=False)
    saver.wait()
    old = filesystem.read_bytes(filesystem.join(place, "index.json"))
    saver.save(snapshot(20, losses=[2.0, 1.0], report=True), best=True, last=False)
    saver.wait()
    filesystem.write_bytes(filesystem.join(place, "index.json"), old)
    recalled = found(place)
    names = ["step-00000010-aaa-1", "step-00000020-aaa-2"]
    assert recalled.uri == filesystem.join(place, names[1])
    assert recalled.kept.best == names[1]
    assert [entry.name for entry in recalled.kept.entries] == names


@pytest.mark.parametrize("pointed", [False, True])
def test_of_two_at_one_step_the_later_counts(place: str, pointed: bool) -> None:
    """An attempt that goes on from step 10 reports there: its checkpoint is newer, with the pointer or without."""
    saver = folder_saver(place, token="zzz")
    saver.save(snapshot(10), best=False, last=False)
    saver.wait()
    old = filesystem.read_bytes(filesystem.join(place, "index.json"))
    again = folder_saver(place, token="aaa", kept=pointer(place))
    again.save(snapshot(10, losses=[1.0], report=True), best=True, last=False)
    again.wait()
    index = filesystem.join(place, "index.json")
    filesystem.write_bytes(index, old if pointed else b"")
    assert found(place).uri == filesystem.join(place, "step-00000010-aaa-1")


def test_a_file_that_the_manifest_does_not_name_is_not_trusted(place: str) -> None:
    """It was never checked, although it is there."""
    names = saved(place, [2.0, 1.0])
    uri = filesystem.join(place, names[-1], "manifest.json")
    manifest = json.loads(filesystem.read_bytes(uri))
    del manifest["files"]["trainer.pt"]
    filesystem.write_bytes(uri, json.dumps(manifest).encode())
    recalled = found(place)
    assert recalled.uri == filesystem.join(place, names[-2])
    assert "trainer.pt is not in manifest.json" in recalled.set_aside[0]


def killed_before_pruning(folder: Path) -> str:
    """Leave the checkpoints of two steps, of which the pointer names the second alone."""
    saver = folder_saver(str(folder), keep_checkpoints=1)
    saver.save(snapshot(1), best=False, last=False)
    saver.wait()
    shutil.copytree(folder / "step-00000001-aaa-1", folder / "copy")
    saver.save(snapshot(2), best=False, last=False)
    saver.wait()
    (folder / "copy").rename(folder / "step-00000001-aaa-1")
    return str(folder)


def test_ones_that_the_pointer_dropped_are_removed(tmp_path: Path) -> None:
    """Killed after the pointer had moved and before they were removed."""
    place = killed_before_pruning(tmp_path)
    recalled = found(place)
    assert recalled.uri == f"{place}/step-00000002-aaa-2"
    assert folders(place) == ["step-00000002-aaa-2"]


def test_one_that_the_pointer_dropped_is_better_than_none(tmp_path: Path) -> None:
    """The only one named is damaged; the dropped one is still there."""
    place = killed_before_pruning(tmp_path)
    damage(place, "step-00000002-aaa-2")
    recalled = found(place)
    assert recalled.uri == f"{place}/step-00000001-aaa-1"
    assert folders(place) == ["damaged-step-00000002-aaa-2", "step-00000001-aaa-1"]


def test_unfinished_folders_and_files_are_removed(place: str) -> None:
    """What has no manifest does not exist, and what begins with a dot was on its way."""
    names = saved(place, [1.0])
    for rest in ("step-00000099-bbb-1/model.safetensors", "step-00000099-bbb-1/.part-0/x", ".index.json-12ab"):
        filesystem.write_bytes(filesystem.join(place, *rest.split("/")), b"x")
    recalled = found(place)
    assert recalled.uri == filesystem.join(place, names[-1])
    assert recalled.set_aside == ()
    assert {name for name, files in filesystem.listing(place).items() if files != frozenset()} == {*names, "index.json"}


def test_a_named_one_without_manifest_is_damaged_not_unfinished(place: str) -> None:
    """The pointer says that it was whole: somebody may want what is left of it."""
    names = saved(place, [2.0, 1.0])
    filesystem.delete(filesystem.join(place, names[-1], "manifest.json"))
    recalled = found(place)
    assert recalled.uri == filesystem.join(place, names[-2])
    assert "it has no manifest.json" in recalled.set_aside[0]
    assert any(name.endswith(names[-1]) for name in folders(place))


def test_one_that_somebody_removed_is_named(place: str) -> None:
    """It is gone, and the next newest is used."""
    names = saved(place, [2.0, 1.0])
    manifest.delete(filesystem.join(place, names[-1]))
    recalled = found(place)
    assert recalled.uri == filesystem.join(place, names[-2])
    assert recalled.set_aside == (f"{names[-1]}: it does not exist",)


def test_a_store_that_does_not_answer_sets_nothing_aside(s3: FakeS3) -> None:
    """The files may be fine: the error is raised, and nothing is touched."""
    place = s3.uri("bucket/run")
    saved(place, [1.0])
    before = dict(s3.objects)
    s3.refuse = lambda _method, path: path.endswith("model.safetensors")
    with pytest.raises(StorageError, match="cannot be used"):
        found(place)
    assert s3.objects == before


def test_only_what_is_needed_is_read(s3: FakeS3) -> None:
    """The newest and the best one's weights are hashed; those in between are not fetched."""
    place = s3.uri("bucket/run")
    names = saved(place, [3.0, 1.0, 2.0])
    s3.requests.clear()
    found(place)
    read = {request.split("/")[-2] for request in s3.requests if request.startswith("GET") and "safetensors" in request}
    assert read == {names[0], names[-1]}


def test_the_first_format_cannot_be_resumed(tmp_path: Path) -> None:
    """It holds weights alone; its files and its pointer stay."""
    folder = tmp_path / "epoch-0001"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    index = json.dumps({"format_version": 1, "best": "epoch-0001", "last": "epoch-0001"})
    (tmp_path / "index.json").write_text(index)
    with pytest.raises(UsageError, match="of an older raymlops"):
        found(str(tmp_path))
    assert (tmp_path / "index.json").read_text() == index
    assert found(str(tmp_path), repair=False).uri is None
