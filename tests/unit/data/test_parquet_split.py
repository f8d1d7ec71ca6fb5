"""Parquet files are drawn by row index, in bounded memory, as the same table in memory would be."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sourced
import torch
from local_training import run_local
from tiny import make_table

from raymlops.data.order import micro_batches
from raymlops.data.parquet_split import ParquetSplit
from raymlops.data.prepare import Memory, prepare
from raymlops.data.sampler import epoch_batches, epoch_rows
from raymlops.data.split import TableSplit
from raymlops.errors import RecipeError, StorageError
from raymlops.profiles.drawn_rows import drawn
from raymlops.training.loop.evaluation import add, block_totals, totals
from raymlops.training.preflight import preflight

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = 300


@pytest.fixture
def files(tmp_path: Path) -> str:
    """A folder of 3 files of 100 rows in row groups of 16, which hold the tiny recipe's training split."""
    table = {name: values[:ROWS] for name, values in make_table(ROWS + 101 + 300, seed=7).items()}
    return sourced.write_parquet(tmp_path / "train", table, files=3, row_group_rows=16)


@pytest.fixture
def streamed(files: str, tiny_project: Any) -> Callable[..., Any]:
    """Prepare the recipe with its files streamed, however small; 4,000 bytes hold 10 encoded row groups of 16 rows."""

    def make(recipe: str = "sourced:FromParquet", *, cache_bytes: int = 4000, **options: Any) -> Any:
        project = tiny_project(recipe=recipe, config={"path": files})
        return prepare(project, memory=Memory(whole_bytes=0, cache_bytes=cache_bytes), **options)

    return make


def test_batches_are_those_of_the_table_in_memory(streamed: Any, tiny_project: Any) -> None:
    """Rows across files and row groups, in any order and twice, are encoded as the table's, label and dtype too."""
    split, table = streamed().splits["train"], prepare(tiny_project()).splits["train"]
    assert isinstance(split, ParquetSplit)
    indices = torch.tensor([299, 0, 15, 16, 100, 99, 0, 150])
    for name, values in table.batch(indices).items():
        assert torch.equal(split.batch(indices)[name], values), name
        assert split.batch(indices)[name].dtype == values.dtype
    assert {name: array.tolist() for name, array in split.take(indices).items() if name != "width"} == {
        name: array.tolist() for name, array in table.take(indices).items() if name != "width"
    }
    assert len(split.batch(torch.tensor([], dtype=torch.int64))["label"]) == 0


def test_hashes_do_not_know_how_rows_are_stored(streamed: Any, tiny_project: Any) -> None:
    """The same rows in files and in memory have the same hashes, and the same fitted state."""
    one, other = streamed(), prepare(tiny_project())
    assert {name: split.digest() for name, split in one.splits.items()} == {
        name: split.digest() for name, split in other.splits.items()
    }
    assert one.state == other.state


def test_streamed_files_are_identified_without_reading_their_rows(streamed: Any, files: str) -> None:
    """By footers and blocks of bytes: no row group is decoded but the first, which the plan needs."""
    prepared = streamed()
    split = prepared.splits["train"]
    decoded: list[None] = []
    split.on_progress = lambda: decoded.append(None)
    data = prepared.data
    assert not decoded
    assert data.identified_by["train"] == "the footers of its files and at most 64 MB of their content"
    assert data.identified_by["test"] == "all rows"
    assert streamed().data == data
    path = Path(files) / "part-1.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, table.column_names[0], [table.column(0).to_pylist()[::-1]]), path)
    assert streamed().data.fingerprint != data.fingerprint


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("skip", [0, 2, 5])
def test_an_epoch_holds_each_row_once_on_any_number_of_workers(streamed: Any, world: int, skip: int) -> None:
    """The rows that W workers draw, from the start or going on after a batch, are all that are left, each once."""
    split = streamed().splits["train"]
    whole = list(split.global_batches(batch_size=64, seed=1, epoch=3))
    done = [row for batch in whole[:skip] for row in batch.tolist()]
    drawn = [
        row
        for batch in split.global_batches(batch_size=64, seed=1, epoch=3, skip=skip)
        for rank in range(world)
        for piece, weight in micro_batches(batch, rank=rank, world=world, pieces=2)
        if weight
        for row in piece.tolist()
    ]
    assert sorted(done + drawn) == list(range(ROWS))
    shares = [row for rank in range(world) for row in split.share(rank=rank, world=world).tolist()]
    assert shares == list(range(ROWS))


def test_memory_is_bounded_and_each_row_group_is_read_once(streamed: Any) -> None:
    """In an epoch the cache never holds more than it may, and no row group is decoded twice."""
    split = streamed().splits["train"]
    peak = 0
    for indices in split.global_batches(batch_size=10, seed=0, epoch=1):
        split.batch(indices)
        peak = max(peak, split.cache.bytes)
    assert 0 < peak <= split.cache.max_bytes == 4000
    assert split.cache.loads == len(split.files.group_rows) == 21


def test_what_is_done_is_not_read_again(streamed: Any) -> None:
    """A run that goes on at the last batch reads its row groups alone."""
    split = streamed().splits["train"]
    for indices in split.global_batches(batch_size=10, seed=0, epoch=1, skip=29):
        split.batch(indices)
    assert split.cache.loads <= 2


def test_an_epoch_is_started_once(streamed: Any, tiny_project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read ahead of it would be forgotten."""
    split, started = streamed().splits["train"], []
    monkeypatch.setattr(split._reader, "follow", lambda *_, **__: started.append(1))
    assert len(list(epoch_batches(split, tiny_project().spec.train, epoch=1, skip=0, rows=ROWS))) > 1
    assert len(started) == 1


def test_a_row_group_is_encoded_once_while_it_is_kept(streamed: Any) -> None:
    """Encoding happens a row group at a time, not a batch at a time."""
    split = streamed().splits["train"]
    sourced.ENCODED.clear()
    for start in range(16):
        split.batch(torch.arange(start, start + 1))
    assert sourced.ENCODED == [16]


def test_target_reads_other_columns_by_name(files: str, streamed: Any) -> None:
    """As of a table in memory; every process reads those that were asked for on the first rows."""
    for path in Path(files).glob("*.parquet"):
        table = pq.read_table(path)
        weights = pa.array(np.arange(100.0) + 1000 * int(path.stem[-1]))
        pq.write_table(table.append_column("weight", weights), path, row_group_size=16)
    driver = streamed("sourced:Weighted")
    assert driver.splits["train"].plan.also == ("weight",)
    worker = streamed("sourced:Weighted", state=driver.state, sources=json.loads(json.dumps(driver.sources())))
    assert worker.splits["train"].plan == driver.splits["train"].plan
    for prepared in (driver, worker):
        batch = prepared.splits["train"].batch(torch.tensor([0, 299, 100]))
        assert batch["label"][:, 1].tolist() == [0.0, 2099.0, 1000.0]
    assert "weight" not in streamed().splits["train"].take(torch.tensor([0]))


def test_a_column_that_no_file_has_is_named(streamed: Any) -> None:
    """As target() asked for it."""
    with pytest.raises(RecipeError, match=r"Weighted\.target\(\) raised KeyError: 'weight'"):
        streamed("sourced:Weighted")


def test_a_sampler_of_rows_that_are_streamed_is_refused_whatever_it_does(streamed: Any) -> None:
    """It gets None for the rows; without rows to choose it may return None, for every row once."""
    for sampler, refused in ((lambda _self, train, _: np.argsort(train["length"]), True), (lambda *_: None, False)):
        recipe = type("Sampled", (sourced.FromParquet,), {"sampler": sampler})
        found = streamed()
        split = found.splits["train"].for_recipe(recipe(found.recipe.config, state=found.state))
        with pytest.raises(RecipeError, match="an order of their own") if refused else nullcontext():
            assert epoch_rows(split, seed=0) == ROWS


def test_the_window_is_configured(files: str, tiny_project: Any) -> None:
    """As megabytes of encoded rows; a row that is larger is a window of its own, and an epoch still has each row."""
    project = tiny_project(recipe="sourced:FromParquet", config={"path": files}, shuffle_window_mb=3)
    prepared = prepare(project, memory=None)
    assert isinstance(prepared.splits["train"], TableSplit)
    split = prepare(project, memory=Memory.of(project.spec.train, whole_bytes=0)).splits["train"]
    assert split.cache.max_bytes == 6 << 20
    small = prepare(project, memory=Memory(whole_bytes=0, cache_bytes=1)).splits["train"]
    assert small.plan.window_rows == 1
    drawn = torch.cat(list(small.global_batches(batch_size=64, seed=0, epoch=1)))
    assert sorted(drawn.tolist()) == list(range(ROWS))
    assert len(small.batch(drawn)["label"]) == ROWS


def test_a_recipe_that_pads_is_encoded_by_batch(streamed: Any) -> None:
    """Each batch is padded to its own longest text, as with a table in memory that does not fit one shape."""
    split = streamed("sourced:Words").splits["train"]
    assert split.plan.by_batch
    texts = split.take(torch.arange(ROWS))["colour"]
    short = torch.from_numpy(np.flatnonzero(texts == "red")[[0, -1]])
    assert split.batch(short)["text"].shape == (2, 3)


def test_padding_does_not_depend_on_what_was_read_before(streamed: Any, files: str) -> None:
    """Where a later row group has a longer text than the first one: a resumed run and a loader see other batches."""
    for path in Path(files).glob("*.parquet"):
        table = pq.read_table(path)
        texts = ["red"] * 20 + ["yellow"] + ["red"] * 79
        at = table.column_names.index("colour")
        pq.write_table(table.set_column(at, "colour", pa.array(texts)), path, row_group_size=16)
    batches = [torch.tensor(rows) for rows in ([0, 1], [16, 17], [0, 17], [0, 20], [16, 17], [40, 0], [0, 1])]
    for cache_bytes in (4000, 1):
        split = streamed("sourced:Words", cache_bytes=cache_bytes).splits["train"]
        assert not split.plan.by_batch
        widths = [split.batch(rows)["text"].shape[1] for rows in batches]
        assert widths == [3, 6, 3, 6, 6, 3, 3]
        alone = [streamed("sourced:Words").splits["train"].batch(rows)["text"].shape[1] for rows in batches]
        assert widths == alone


def test_a_training_on_files_is_that_on_the_table(streamed: Any, tiny_project: Any, files: str) -> None:
    """With a batch of all rows the order does not matter, and files and table give the same model."""
    options = {"batch_size": ROWS, "epochs": 2}
    one = run_local(tiny_project(recipe="sourced:FromParquet", config={"path": files}, **options), prepared=streamed())
    other = run_local(tiny_project(**options))
    assert one.metrics == pytest.approx(other.metrics, rel=1e-5)


def test_a_worker_reads_what_the_driver_listed(streamed: Any, tiny_project: Any, files: str) -> None:
    """With the driver's sources, as JSON, no folder is listed and ``datasets()`` is not called."""
    import json

    driver = streamed("sourced:AllParquet")
    known = json.loads(json.dumps(driver.sources()))
    worker = prepare(
        tiny_project(recipe="sourced:Forgotten", config={"path": files}), state=driver.state, sources=known
    )
    for name, split in driver.splits.items():
        order = [list(each.global_batches(batch_size=7, seed=0, epoch=1)) for each in (split, worker.splits[name])]
        assert all(torch.equal(*pair) for pair in zip(*order, strict=True))
    assert worker.data == driver.data
    worker.verify()


def test_a_small_file_is_a_table(files: str, tiny_project: Any) -> None:
    """What fits well into memory is read whole; a process that is given the list reads the same rows, or says so."""
    project = tiny_project(recipe="sourced:AllParquet", config={"path": files})
    driver = prepare(project)
    assert driver.splits["train"].columns is not None
    known = driver.sources()
    assert prepare(project, state=driver.state, sources=known).data == driver.data
    part = pq.read_table(f"{files}/part-0.parquet")
    flipped = part.set_column(0, "length", pa.array([-value for value in part["length"].to_pylist()]))
    pq.write_table(flipped, f"{files}/part-0.parquet", row_group_size=16)
    with pytest.raises((RecipeError, StorageError), match=r"on the driver|changed since the run was prepared"):
        prepare(project, state=driver.state, sources=known)


def test_a_damaged_file_names_itself_and_the_way_on(streamed: Any, files: str) -> None:
    """Bytes that were overwritten in place, in the middle of an epoch: the error says where, and how to go on."""
    import os
    from pathlib import Path

    split = streamed().splits["train"]
    path = Path(files) / "part-1.parquet"
    before = path.stat()
    data = path.read_bytes()
    start = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    path.write_bytes(data[:start] + b"\xff" * 200 + data[start + 200 :])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    split.batch(torch.arange(100))
    with pytest.raises(StorageError, match=r"row group 2 of .*part-1\.parquet cannot be read(?s:.*)--resume RUN_ID"):
        split.batch(torch.arange(100, 200))
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(split.batch(torch.arange(100, 200))["label"]) == 100


@pytest.mark.parametrize("change", ["gone", "longer", "touched"])
def test_a_file_that_changed_is_refused(streamed: Any, files: str, change: str) -> None:
    """A file is compared with what was listed whenever it is read, and at once when asked."""
    import os
    from pathlib import Path

    prepared = streamed()
    path = Path(files) / "part-2.parquet"
    if change == "gone":
        path.unlink()
    elif change == "longer":
        path.write_bytes(path.read_bytes() + b"x")
    else:
        os.utime(path, ns=(0, 0))
    for read in (lambda: prepared.splits["train"].batch(torch.tensor([250])), prepared.verify):
        with pytest.raises(StorageError, match=r"part-2\.parquet changed since the run was prepared"):
            read()


def test_a_file_without_a_column_is_named(streamed: Any, files: str) -> None:
    """Files of a folder need not have one schema, but each needs the columns that are read."""
    part = pq.read_table(f"{files}/part-1.parquet")
    pq.write_table(part.drop_columns(["width"]), f"{files}/part-1.parquet", row_group_size=16)
    split = streamed("sourced:FromParquet", state=_state()).splits["train"]
    with pytest.raises(RecipeError, match=r"row group 0 of .*part-1\.parquet, of the train split, lacks 'width'"):
        split.batch(torch.tensor([100]))


def test_a_label_of_another_type_is_named(streamed: Any, files: str) -> None:
    """Whole numbers in one file and fractions in another would give batches of either type."""
    part = pq.read_table(f"{files}/part-1.parquet")
    whole = part.set_column(part.column_names.index("label"), "label", part["label"].cast(pa.int64()))
    pq.write_table(whole, f"{files}/part-1.parquet", row_group_size=16)
    split = streamed("sourced:FromParquet", state=_state()).splits["train"]
    with pytest.raises(RecipeError, match=r"label 'label' is int64 in row group 0 .*, but float64"):
        split.batch(torch.tensor([100]))


def test_a_split_without_rows_is_refused(streamed: Any, files: str) -> None:
    """Files that hold no row are no split."""
    from pathlib import Path

    for path in Path(files).iterdir():
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(RecipeError, match="train split has no rows"):
        streamed()


def test_an_empty_file_among_others_does_no_harm(streamed: Any, files: str) -> None:
    """A writer that had nothing to write leaves a file without rows."""
    pq.write_table(pq.read_table(f"{files}/part-0.parquet").slice(0, 0), f"{files}/part-0.parquet")
    prepared = streamed()
    split = prepared.splits["train"]
    assert split.rows == 200
    drawn = torch.cat(list(split.global_batches(batch_size=30, seed=0, epoch=1)))
    assert sorted(drawn.tolist()) == list(range(200))
    assert len(np.concatenate([*split.hashes()])) == 200
    assert len(split.batch(drawn)["label"]) == 200


def test_a_sample_is_even(streamed: Any) -> None:
    """One of each 30 of 300 rows, in order."""
    split = streamed().splits["train"]
    numbers = drawn(ROWS, most=10)
    assert (numbers // 30).tolist() == list(range(10))
    assert split.sample(about_rows=10)["length"].tolist() == split.take(torch.from_numpy(numbers))["length"].tolist()


def test_one_row_group_larger_than_the_cache_is_held_alone(streamed: Any) -> None:
    """It has to be decoded anyway; the window is then that row group."""
    split = streamed(cache_bytes=10).splits["train"]
    for indices in split.global_batches(batch_size=10, seed=0, epoch=1):
        split.batch(indices)
    assert split.plan.window_rows == 1
    assert split.cache.bytes in {16 * 24, 4 * 24}  # the last row group of a file has 4 rows


def _state() -> dict[str, Any]:
    return {"colours": ["blue", "green", "red"], "width_mean": 10.0, "width_sd": 3.0}


@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_on_files_is_that_on_the_table(streamed: Any, tiny_project: Any, files: str, world: int) -> None:
    """Shares of ranks, blocks for resampling and the preflight take rows by index, and get the same sums."""
    project = tiny_project(recipe="sourced:AllParquet", config={"path": files})
    one, other = streamed("sourced:AllParquet"), prepare(project)
    preflight(project, one)
    model = one.recipe.model()
    sums = []
    for prepared in (one, other):
        merged = None
        for rank in range(world):
            split = prepared.splits["validation"]
            merged = add(merged, totals(one.recipe, model, split, batch_size=32, rank=rank, world=world))
        test = prepared.splits["test"]
        blocks = np.array_split(np.arange(test.rows), 7)
        sums.append([merged, *block_totals(one.recipe, model, test, blocks=blocks, batch_size=32)])
    for left, right in zip(*sums, strict=True):
        for name, value in right.items():
            np.testing.assert_allclose(left[name], value, rtol=1e-6)
