"""Batches of loader processes are those that this process reads, in their order; what goes wrong in them is told."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from drawn import Items
from loaded import Calling, Faulty, Logged, Mixed, Pass, Passing, Rare, Refusing, Slow, Unpicklable

from raymlops.data.dataset_split import DatasetSplit
from raymlops.data.iterable_split import IterableSplit
from raymlops.data.loading import pool
from raymlops.data.loading.loader import Loader
from raymlops.data.loading.messages import readable
from raymlops.data.parquet.files import list_parquet
from raymlops.data.parquet_split import ParquetSplit
from raymlops.data.split import TableSplit
from raymlops.errors import RecipeError, StorageError, TrainingError, UsageError
from raymlops.recipe import Progress
from raymlops.training.supervision.failure_policy import Raised, may_pass_here

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from raymlops.data.split import SplitData


PR_SET_CHILD_SUBREAPER = 36


def split(dataset: Any, *, name: str = "train") -> DatasetSplit:
    return DatasetSplit(dataset, name=name, recipe=Mixed())


def loader(*splits: SplitData, processes: int = 2, **options: Any) -> Loader:
    return Loader(
        {each.name: each for each in splits}, processes=processes, **{"ahead": 2, "timeout_s": 60.0} | options
    )


def equal(left: Any, right: Any) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def splits() -> dict[str, SplitData]:
    return {
        "train": split(Rare(300)),
        "validation": IterableSplit(Pass(101), name="validation", recipe=Mixed()),
        "test": split(Items(3), name="test"),
    }


@pytest.fixture(scope="module")
def pinning(splits: dict[str, SplitData]) -> Iterator[tuple[Loader, list[torch.Tensor]]]:
    """Yield a loader, and what it has pinned."""
    pinned: list[torch.Tensor] = []
    with pytest.MonkeyPatch.context() as patch:  # as long as its thread may run
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
        made = loader(splits["train"], pinned=True)
        yield made, pinned
        made.close()


@pytest.fixture(scope="module")
def three(splits: dict[str, SplitData]) -> Iterator[Loader]:
    made = loader(*splits.values(), processes=3)
    yield made
    made.close()


def test_batches_are_equal_to_the_bit(splits: dict[str, SplitData], three: Loader) -> None:
    """Items that draw, in each epoch, and draws of ``collate``; with more loaders than batches, too."""
    train = splits["train"]
    for epoch, rows, batch_size in ((1, 300, 32), (2, 300, 300), (3, 2, 1), (4, 0, 1)):
        train.start_epoch(seed=3, epoch=epoch)
        order = torch.randperm(300)[:rows]
        read = list(three.batches(train, order, batch_size=batch_size))
        here = list(train.batches(order, batch_size=batch_size))
        assert len(read) == len(here)
        assert all(map(equal, read, here))


def test_an_iterable_dataset_is_one_pass_in_one_process(splits: dict[str, SplitData], three: Loader) -> None:
    """Read twice it yields the same, and this process's generators are left alone."""
    validation = splits["validation"]
    here = list(validation.batches(batch_size=16))
    before = torch.get_rng_state()
    for _ in range(2):
        assert all(map(equal, three.batches(validation, torch.arange(101), batch_size=16), here))
    assert torch.equal(torch.get_rng_state(), before)


def test_pieces_are_those_that_were_asked_for(splits: dict[str, SplitData], three: Loader) -> None:
    """Read ahead as they will be asked for; others are read here, and those that nobody asks for are dropped."""
    train = splits["train"]
    train.start_epoch(seed=0, epoch=1)
    order = torch.randperm(300).split(20)
    asked = []
    steps = ((Progress(step, 1, 15), rows) for step, rows in enumerate(order))
    for progress, rows in three.steps(train, steps, lambda rows: [(rows[:10], 1.0), (rows[10:], 1.0)]):
        train.recipe.progress = progress
        if progress.step % 4 == 1:
            continue
        pieces = [rows] if progress.step % 4 == 2 else [rows[:10], rows[10:]]
        if progress.step == 6:  # an evaluation in between, also of the same split
            assert equal(next(three.batches(train, torch.arange(9), batch_size=9)), train.batch(torch.arange(9)))
        for piece in pieces:
            asked.append(progress.step)
            assert equal(three.batch(train, piece), train.batch(piece)), progress
        if progress.step == 12:
            break
    assert asked == [0, 0, 2, 3, 3, 4, 4, 6, 7, 7, 8, 8, 10, 11, 11, 12, 12]
    train.recipe.progress = Progress()


def test_pinned_batches_come_from_a_thread(
    splits: dict[str, SplitData], pinning: tuple[Loader, list[torch.Tensor]]
) -> None:
    """The next one is received and pinned while a step runs; order and bits stay, also where steps are left out."""
    (made, pinned), train = pinning, splits["train"]
    train.start_epoch(seed=0, epoch=1)
    steps = ((Progress(step, 1, 15), rows) for step, rows in enumerate(torch.arange(300).split(20)))
    for progress, rows in made.steps(train, steps, lambda rows: [(rows, 1.0)]):
        train.recipe.progress = progress
        if progress.step not in {3, 7}:
            assert equal(made.batch(train, rows), train.batch(rows))
        if progress.step == 9:
            break
    train.recipe.progress = Progress()
    assert equal(next(made.batches(train, torch.arange(9), batch_size=9)), train.batch(torch.arange(9)))
    assert pinned


def test_passes_may_end_late(
    splits: dict[str, SplitData], pinning: tuple[Loader, list[torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was left for another takes nothing from it, and one may outlive the loader."""
    (made, _), train = pinning, splits["train"]
    passes = []
    for _ in range(2):
        steps = ((Progress(step, 1, 15), rows) for step, rows in enumerate(torch.arange(300).split(20)))
        passes.append(made.steps(train, steps, lambda rows: [(rows, 1.0)]))
        next(passes[-1])
    passes[0].close()
    monkeypatch.setattr(train, "batch", lambda _rows: pytest.fail("read here"))
    assert len(made.batch(train, torch.arange(20))["x"]) == 20
    made.close()
    passes[1].close()


STATE = {"colours": ["red"], "width_mean": 0.0, "width_sd": 1.0}


def columns_of(rows: int, *, wide: Collection[int] = ()) -> dict[str, Any]:
    colours = np.array(["crimson" if row in wide else "red" for row in range(rows)], dtype=object)
    return {"length": np.arange(float(rows)), "width": np.zeros(rows), "colour": colours, "label": np.ones(rows)}


def streamed(
    folder: Path,
    *,
    name: str = "train",
    wide: Collection[int] = (),
    cache_bytes: int = 1 << 20,
    kind: type[Logged] = Logged,
) -> ParquetSplit:
    """Return 1000 rows in 20 groups, of which two and a half fit into a window."""
    (folder / "rows").mkdir(parents=True)
    pq.write_table(pa.table(columns_of(1000, wide=wide)), folder / "rows" / "0.parquet", row_group_size=50)
    recipe = kind(state=STATE)
    recipe.log = str(folder / "log")
    made = ParquetSplit(list_parquet(str(folder / "rows")), name=name, recipe=recipe, cache_bytes=cache_bytes)
    if cache_bytes > 1000:
        made.plan = dataclasses.replace(made.plan, window_rows=125)
    return made


@pytest.mark.usefixtures("forked")
def test_streamed_files_are_read_by_windows(tmp_path: Path) -> None:
    """Each row once, equal to what is read here; each group is decoded by one loader, also where batches span two."""
    parquet = streamed(tmp_path)
    made = loader(parquet, processes=3, ahead=3)
    batches = list(parquet.global_batches(batch_size=32, seed=0, epoch=1))
    parquet.start_epoch(seed=0, epoch=1)
    windows = [parquet.stretches(rows).tolist() for rows in batches]
    assert all(first <= last for found, following in pairwise(windows) for first in found for last in following)
    assert {window for found in windows for window in found} == set(range(10))
    assert sum(len(set(found)) > 1 for found in windows) == 8  # of 9 boundaries, the one at row 800 is a batch's
    steps = ((Progress(), rows) for rows in batches)
    for _, rows in made.steps(parquet, steps, lambda rows: [(piece, 1.0) for piece in rows.split(20)]):
        for piece in rows.split(20):
            assert equal(made.batch(parquet, piece), parquet.batch(piece))
    made.close()
    assert sorted(parquet.recipe.encoded()) == [(50, first) for first in range(0, 1000, 50)]


@pytest.mark.usefixtures("forked")
def test_an_evaluation_of_files_is_read_by_row_groups(tmp_path: Path) -> None:
    """Groups take turns, and each is decoded by one loader: 32 rows may be of two, and 120 of four of them."""
    splits = {32: streamed(tmp_path / "32", name="train"), 120: streamed(tmp_path / "120", name="validation")}
    made = loader(*splits.values())
    for batch_size, parquet in splits.items():
        here = streamed(tmp_path / f"{batch_size} here")
        read = list(made.batches(parquet, torch.arange(1000), batch_size=batch_size))
        assert all(map(equal, read, here.batches(batch_size=batch_size)))
        assert sorted(parquet.recipe.encoded()) == [(50, first) for first in range(0, 1000, 50)]
    made.close()


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("pinned", [False, True])
def test_what_is_padded_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pinned: bool) -> None:
    """Rows of two loaders that have other shapes, which only reading shows, make the batch that this process makes."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    parquet = streamed(tmp_path, wide=(320, 321, *range(600, 650)))
    assert not parquet.plan.by_batch
    made = loader(parquet, pinned=pinned)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    read = list(made.batches(parquet, order, batch_size=8))
    here = streamed(tmp_path / "here", wide=(320, 321, *range(600, 650)))
    assert all(map(equal, read, here.batches(order, batch_size=8)))
    assert {batch["wide"].shape[1] for batch in read} == {3, 7}
    made.close()


@pytest.mark.usefixtures("forked")
def test_nothing_is_kept_of_a_batch_one_part_of_which_fails(tmp_path: Path) -> None:
    """Rows 0 to 119 are of two loaders, of which the first cannot encode row 110."""
    parquet = streamed(tmp_path, wide=(110,), kind=Refusing)
    assert not parquet.plan.by_batch
    made = loader(parquet)
    with pytest.raises(RecipeError, match="no such colour"):
        next(made.batches(parquet, torch.arange(120), batch_size=120))
    list(made.batches(parquet, torch.arange(150, 250), batch_size=100))  # each loader answers in order
    assert made._pool is not None
    assert (made._pool._arrived, made._pool._dropped) == ({}, set())
    made.close()


@pytest.mark.usefixtures("forked")
def test_rows_wider_than_the_window_are_read_a_group_at_a_time(tmp_path: Path) -> None:
    """In its order: a window has a row group at least, and a batch of 120 rows is of three of them or four."""
    parquet, here = (streamed(tmp_path / name, cache_bytes=10) for name in ("there", "here"))
    assert parquet.plan.window_rows == 1
    made = loader(parquet)
    rows = list(parquet.global_batches(batch_size=120, seed=0, epoch=1))
    parquet.start_epoch(seed=0, epoch=1)
    here.start_epoch(seed=0, epoch=1)
    steps = ((Progress(), each) for each in rows)
    for _, each in made.steps(parquet, steps, lambda each: [(each, 1.0)]):
        assert equal(made.batch(parquet, each), here.batch(each))
    made.close()


@pytest.mark.usefixtures("forked")
def test_a_file_that_shrinks_in_mid_epoch_is_named(tmp_path: Path) -> None:
    """By the loader that reads it: which file, what it was and is, and how to go on once it is restored."""
    parquet = streamed(tmp_path)
    made = loader(parquet)
    batches = made.batches(parquet, torch.arange(1000), batch_size=32)
    next(batches)
    path = tmp_path / "rows" / "0.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StorageError, match=r"0\.parquet changed since .*: it has \d+ bytes, not \d+(?s:.*)restore it"):
        list(batches)
    made.close()


def test_a_table_is_encoded_once_it_is_read(tmp_path: Path) -> None:
    """Not by asking whether loaders are to read it: the test split is evaluated at the end of a run, if at all."""
    recipe = Logged(state=STATE)
    recipe.log = str(tmp_path / "log")
    for wide, read_ahead in (((), False), (range(0, 20_000, 3), True)):
        (tmp_path / "log").write_text("")
        split = TableSplit(columns_of(20_000, wide=wide), name="test", recipe=recipe)
        assert split.read_ahead is read_ahead
        assert sum(rows for rows, _ in recipe.encoded(by={os.getpid()})) < 1000


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("fault", "kind", "said", "again"),
    [
        ("raises", RecipeError, r"Mixed\.datasets\(\): the train split: item 7 raised ValueError: .* cut short", False),
        ("storage", RecipeError, r"item 7 raised TimeoutError: .*Connection timed out", True),
        ("exits", RecipeError, r"item 7 ", False),
        ("quits", TrainingError, r"(?s)loader process 1 .* exited with 3 .*What it printed is in the log", True),
        ("dies", TrainingError, r"loader process 1 \(pid \d+\) was killed by SIGKILL .* 4 rows .*\(4, 5, 6, 7\)", True),
        ("hangs", TrainingError, r"loader process 1 \(pid \d+\) has sent no heartbeat for \d+ s, .*\(4, 5, ", True),
    ],
)
def test_what_goes_wrong_names_the_item(
    fault: str, kind: Any, said: str, again: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """An item that raises, or the rows with which a process died or hangs; a lasting error stops, others may pass.

    Each row is one that the epoch's sampler has drawn before: its index is 40 more.
    """
    made = loader(split(Faulty(40, item=7, fault=fault)), timeout_s=1.0 if fault == "hangs" else 60.0)
    batches = made.batches(split(Faulty(40, item=7, fault=fault)), torch.arange(40, 80), batch_size=4)
    next(batches)
    with pytest.raises(kind, match=said) as caught:
        list(batches)
    made.close()
    assert may_pass_here(Raised.by(caught.value)) is again
    if fault == "raises":
        assert "in fail" in caught.value.__notes__[0]
    if fault == "hangs":
        assert "in fail" in capfd.readouterr().err


def test_what_no_process_can_have_is_refused() -> None:
    """Which split, why, and what to do."""
    with pytest.raises(RecipeError, match=r"the train data cannot be sent .*generator.*\s.*data_workers=0"):
        loader(split(Unpicklable())).start()


@pytest.mark.usefixtures("forked")
def test_a_batch_that_cannot_be_sent_is_the_recipes_error() -> None:
    """Its split and what to return instead; the process goes on."""
    dataset = DatasetSplit(Items(8), name="train", recipe=Calling())
    made = loader(dataset, processes=1)
    for _ in range(2):
        with pytest.raises(
            RecipeError, match=r"a batch of the train split cannot be sent .*: .*\s.*from .*collate\(\)"
        ):
            next(made.batches(dataset, torch.arange(4), batch_size=4))
    made.close()


def test_loaders_need_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere they are refused before anything starts; without them all goes on."""
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UsageError, match=r"train\.data_workers needs Linux, but this is darwin\s+Set it to 0"):
        loader(split(Items(4)))
    loader(split(Items(4)), processes=0)


def test_an_import_that_fails_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a loader needs and does not find is named where its first batch is waited for."""
    monkeypatch.setattr(sys, "path", [each for each in sys.path if not each.endswith("fixtures")])
    made = loader(split(Items(4)))
    with pytest.raises(ModuleNotFoundError, match="No module named"):
        next(made.batches(split(Items(4)), torch.arange(4), batch_size=2))
    made.close()


@pytest.mark.usefixtures("forked")
def test_signs_of_life_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that takes longer than a loader may be silent, to skip rows, counts as progress while it goes on."""
    seen: list[int] = []
    looks = 0

    def look(lane: socket.socket, *, within_s: float) -> bool:
        """Find nothing, and next time a message, after a second each by the clock of the pool."""
        nonlocal looks
        looks += 1
        return looks % 2 == 0 and readable(lane, within_s=60.0)

    monkeypatch.setattr(pool, "readable", look)
    monkeypatch.setattr(pool, "time", SimpleNamespace(monotonic=lambda: float(looks), sleep=time.sleep))
    dataset = IterableSplit(Slow(250), name="train", recipe=Passing(), known={"rows": 250, "digest": "", "head": ""})
    made = loader(dataset, timeout_s=1.5, on_progress=lambda: seen.append(1))
    assert len(next(made.batches(dataset, torch.tensor([249]), batch_size=1))["x"]) == 1
    made.close()
    assert len(seen) == 4  # once ready, and after 100, 200 and 250 rows


SCRIPT = """
import os, sys, time
import torch
sys.path[:0] = {paths!r}
from loaded import Mixed, Items
from raymlops.data.loading import pool
from raymlops.data.loading.loader import Loader
from raymlops.data.loading.messages import readable
from raymlops.data.dataset_split import DatasetSplit
split = DatasetSplit(Items(400), name="train", recipe=Mixed())
loader = Loader({{"train": split}}, processes=2, ahead=2, timeout_s=60.0)
batches = loader.batches(split, torch.arange(400), batch_size=4)
next(batches)
{then}
"""


def script(then: str) -> subprocess.Popen[str]:
    """Start a script without a guard for its main module, which reads a batch and goes on."""
    source = SCRIPT.format(paths=[each for each in sys.path if each.endswith("fixtures")], then=textwrap.dedent(then))
    return subprocess.Popen(
        [sys.executable, "-c", source],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until_gone(processes: list[psutil.Process]) -> None:
    _gone, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive


def test_loaders_end_with_a_killed_training() -> None:
    """Kill -9 of the process that trains leaves no process behind."""
    running = script("print('reading', flush=True); time.sleep(600)")
    assert running.stdout is not None
    assert running.stdout.readline() == "reading\n"
    while len(children := psutil.Process(running.pid).children(recursive=True)) < 3:
        time.sleep(0.01)  # the first of both may have read a batch before the second one is started
    running.kill()
    running.communicate()
    wait_until_gone(children)


@pytest.mark.soak
def test_signals_are_the_trainings() -> None:
    """The loaders of a terminal's process group read on until the training has stopped, and none is left."""
    running = script(
        """
        import signal
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        for number in ("SIGTERM", "SIGINT"):
            try:
                print("reading", flush=True)
                while True:  # a signal just before one long sleep would be handled after it
                    time.sleep(0.01)
            except KeyboardInterrupt:
                next(batches)
                print(number, flush=True)
        print(len(list(batches)), flush=True)
        """
    )
    assert running.stdout is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        assert running.stdout.readline() == "reading\n"
        os.killpg(running.pid, number)
        assert running.stdout.readline() == f"{number.name}\n"
    out, err = running.communicate(timeout=60)
    assert (out, err) == ("97\n", "")


def test_no_zombie_is_left() -> None:
    """Loaders are waited for: in a container without an init nobody else would."""
    made = loader(split(Items(4)))
    made.start()
    next(made.batches(split(Items(4)), torch.arange(4), batch_size=2))
    assert made._pool is not None
    loaders = psutil.Process(made._pool._server.pid).children()
    assert len(loaders) == 2
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)  # as a container's first process, to which they would fall
    try:
        made.close()
        time.sleep(0.2)
        assert not [each for each in loaders if each.is_running()]
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0)
