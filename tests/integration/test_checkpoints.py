"""Checkpoints on real disks that fill up, and of processes that are killed while they write."""

from __future__ import annotations

import json
import multiprocessing
import random
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import checkpoint_jobs
import pytest
import torch
from ranks import ranks
from saved_weights import load_weights
from snapshots import folder_saver, train_a_while, write_until_killed

from raymlops.errors import StorageError
from raymlops.storage import filesystem
from raymlops.training.checkpoints.latest import recall
from raymlops.training.checkpoints.saver import Snapshot
from raymlops.training.checkpoints.state import RunState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from fake_s3 import FakeS3

pytestmark = pytest.mark.integration


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of its own, mounted with the options that the test asks for."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def large(step: int, *, report: bool = False) -> Snapshot:
    """A model of 1 MB, whose AdamW has no state yet."""
    model = torch.nn.Linear(500, 500)
    history = [{"loss": 1.0 / number} for number in range(1, step + 1)]
    state = RunState(step=step, history=history, best_epoch=step)
    return Snapshot(state, history[-1] if report else {}, model, torch.optim.AdamW(model.parameters()), {})


def folders(place: str) -> list[str]:
    return sorted(name for name, files in filesystem.listing(place).items() if files)


@pytest.mark.parametrize("disk", ["size=4m"], indirect=True)
def test_a_full_disk_keeps_the_last_good_one(disk: Path) -> None:
    """4 MB hold two checkpoints of 1 MB and the room for a third that is asked for; a foreign file takes that."""
    told: list[str] = []
    place = str(disk / "checkpoints")
    saver = folder_saver(place, on_checkpoint_error="continue", on_event=told.append)
    saver.save(large(1, report=True), best=True, last=False)
    saver.wait()
    foreign = disk / "foreign"
    foreign.write_bytes(bytes(2_500_000))
    saver.save(large(2), best=False, last=False)
    saver.wait()
    assert saver.failures == 1
    assert "MB free" in told[0]
    assert f"The last good one is kept: {place}/step-00000001-aaa-1" in told[0]
    assert folders(place) == ["step-00000001-aaa-1"]
    foreign.unlink()
    saver.save(large(3), best=False, last=True)
    saver.wait()
    assert recall(place, metric="loss", mode="min").uri == f"{place}/step-00000003-aaa-3"


@pytest.mark.parametrize("disk", ["size=40m,nr_inodes=14"], indirect=True)
def test_a_disk_that_fills_up_in_mid_checkpoint_leaves_nothing_of_it(disk: Path) -> None:
    """There is room for bytes but not for files: with 14 inodes the second checkpoint breaks off in the middle."""
    place = str(disk / "checkpoints")
    saver = folder_saver(place)
    saver.save(large(1, report=True), best=True, last=False)
    saver.wait()
    for number in range(4):  # root, checkpoints, a folder and its 4 files, the pointer: 8 are in use, 2 will be free
        (disk / f"foreign-{number}").touch()
    saver.save(large(2), best=False, last=False)
    with pytest.raises(StorageError, match="No space left on device"):
        saver.wait()
    assert filesystem.listing(place).keys() == {"step-00000001-aaa-1", "index.json"}
    assert load_weights(saver.best_uri)[0]["weight"].shape == (500, 500)


@pytest.mark.parametrize("disk", ["size=100k"], indirect=True)
def test_a_full_disk_stops_no_rank_of_a_sharded_run(disk: Path) -> None:
    """No rank hangs, all count the same failures, and what is there can be read."""
    place = str(disk / "checkpoints")
    (disk / "foreign").write_bytes(bytes(40_000))
    wrote = ranks().run(2, partial(checkpoint_jobs.save, place=place, steps=4))
    assert wrote[0]["failures"] == wrote[1]["failures"] > 0
    recalled = recall(place, metric="loss", mode="min")
    assert recalled.uri == wrote[0]["last"]
    assert recalled.set_aside == ()
    assert [entry.name for entry in recalled.kept.entries] == folders(place)


def test_a_limit_on_files_is_as_a_full_disk(tmp_path: Path) -> None:
    """The kernel refuses in the middle of the weights, as a quota does; the run says so and goes on."""
    script = f"""
import resource, sys
sys.path[:0] = {[str(Path(__file__).parents[1] / "fixtures")]!r}
import torch
from snapshots import folder_saver, snapshot
saver = folder_saver({str(tmp_path)!r}, on_checkpoint_error="continue", on_event=print)
saver.save(snapshot(1), best=True, last=False)
saver.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
taken = snapshot(2)
model = torch.nn.Linear(500, 500)
taken = type(taken)(taken.state, {{}}, model, torch.optim.SGD(model.parameters()), {{}})
saver.save(taken, best=False, last=False)
saver.wait()
saver.save(snapshot(3), best=False, last=True)
saver.wait()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert "the checkpoint of step 2 could not be written" in ended.stdout
    assert "File too large" in ended.stdout
    assert folders(str(tmp_path)) == ["step-00000001-aaa-1", "step-00000003-aaa-3"]


@pytest.mark.parametrize("kills", [6, pytest.param(40, marks=pytest.mark.soak)])
@pytest.mark.parametrize("kind", ["path", "s3"])
def test_whenever_a_writer_is_killed_the_newest_whole_one_is_found(
    kind: str, kills: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """kill -9 at drawn moments: no checkpoint that was said to be there is lost, and nothing else is left."""
    place = str(tmp_path / "c") if kind == "path" else request.getfixturevalue("s3").uri("bucket/run/checkpoints")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["raymlops.training.checkpoints.latest", "snapshots", "pyarrow.fs", "torch._dynamo"])
    moments = random.Random(kind)
    acknowledged = 0
    for attempt in range(kills):
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=write_until_killed, args=(place, f"t{attempt}", theirs), daemon=True)
        child.start()
        theirs.close()
        assert ours.poll(60)
        time.sleep(moments.uniform(0, 0.05))
        child.kill()
        child.join()
        acknowledged = max([acknowledged, *_received(ours)])

        recalled = recall(place, metric="loss", mode="min")
        assert recalled.set_aside == ()
        assert recalled.uri is not None
        assert recalled.state is not None
        assert acknowledged <= recalled.state.step <= acknowledged + 1
        assert load_weights(recalled.uri)[1] == {"step": recalled.state.step}
        there = {name for name, files in filesystem.listing(place).items() if files != frozenset()}
        assert there == {entry.name for entry in recalled.kept.entries} | {"index.json"}
        losses = [entry["loss"] for entry in recalled.state.history]
        if losses:
            best = recalled.kept.entry(recalled.kept.best)
            assert best is not None
            assert best.value == min(losses)


def _received(pipe: Connection) -> list[int]:
    received: list[int] = []
    try:
        while True:
            received.append(pipe.recv())
    except EOFError:
        return received


def test_a_scratch_folder_of_a_killed_upload_is_removed(s3: FakeS3, tmp_path: Path) -> None:
    """Files are prepared on this machine's disk before they are uploaded: the next upload removes what was left."""
    environment: dict[str, Any] = {"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    script = """
import sys
from raymlops.storage.scratch import scratch
with scratch() as folder:
    (folder / "model").write_bytes(b"x")
    print("there", flush=True)
    sys.stdin.read()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"there\n"
    look = [sys.executable, "-c", "from raymlops.storage.scratch import scratch\nwith scratch(): pass"]
    subprocess.run(look, env=environment, check=True)
    assert len(list(tmp_path.glob("raymlops-scratch-*"))) == 2  # a folder and its lock: the child lives
    child.kill()
    child.communicate()
    subprocess.run(look, env=environment, check=True)
    assert list(tmp_path.glob("raymlops-scratch-*")) == []


def test_a_run_on_an_object_store_goes_on(s3: FakeS3) -> None:
    """All that a disk does but renaming: keep, prune, find, read, and set aside by a mark."""
    place = s3.uri("bucket/run/checkpoints")
    saver = folder_saver(place)
    train_a_while(saver, [3.0, 1.0, 2.0])
    key = next(key for key in s3.objects if key.endswith("step-00000030-aaa-6/model.safetensors"))
    s3.objects[key] = s3.objects[key][:-1] + b"?"
    recalled = recall(place, metric="loss", mode="min")
    assert recalled.uri == filesystem.join(place, "step-00000025-aaa-5")
    assert recalled.kept.best == "step-00000020-aaa-4"
    marked = next(key for key in s3.objects if key.endswith("step-00000030-aaa-6/damaged"))
    assert b"model.safetensors is damaged" in s3.objects[marked]
    index = json.loads(filesystem.read_bytes(filesystem.join(place, "index.json")))
    assert index["last"] == "step-00000025-aaa-5"
