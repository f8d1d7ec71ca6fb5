"""A Delta table as training data: one version of it, for all processes, however it is written meanwhile."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sourced
import torch
from delta_tables import vacuum, write
from deltalake import DeltaTable
from tiny import make_table

from raymlops.data.cache import DataCache
from raymlops.data.parquet.files import ParquetFiles, list_parquet
from raymlops.data.prepare import Memory, fixed, prepare, versions_of
from raymlops.errors import NotFoundError, RecipeError, StorageError, UsageError
from raymlops.storage.delta import tables

if TYPE_CHECKING:
    from pathlib import Path

    from fake_s3 import FakeS3

TABLE = {name: values[:300] for name, values in make_table(701, seed=7).items()}


def rows(start: int, stop: int) -> dict[str, Any]:
    return {name: pa.array(list(values[start:stop]), from_pandas=True) for name, values in TABLE.items()}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """The tiny recipe's training split, written in two versions."""
    write(tmp_path / "t", rows(0, 200))
    write(tmp_path / "t", rows(200, 300))
    return tmp_path / "t"


@pytest.fixture(params=["whole", "streamed"])
def prepared_as(request: pytest.FixtureRequest, tiny_project: Any) -> Any:
    """Prepare the recipe, its training split read at once or by row groups."""
    whole = Memory() if request.param == "whole" else Memory(whole_bytes=0, cache_bytes=4000)

    def make(path: object, recipe: str = "sourced:FromParquet", **options: Any) -> Any:
        return prepare(tiny_project(recipe=recipe, config={"path": str(path)}), memory=whole, **options)

    return make


def test_rows_are_those_of_the_version(table: Path, prepared_as: Any, tiny_project: Any) -> None:
    """The newest by default, and which it was is on the record; equal to the same rows in memory."""
    prepared = prepared_as(table)
    assert prepared.data.tables == {"train": f"{table}@v1"}
    assert "version 1 of the Delta table" in prepared.data.identified_by["train"]
    expected = prepare(tiny_project()).splits["train"].digest()
    assert prepared.splits["train"].digest() == expected
    first = prepared_as(f"{table}@v0")
    assert (first.data.rows["train"], first.data.tables) == (200, {"train": f"{table}@v0"})


def test_every_process_reads_the_snapshot_of_the_first(table: Path, prepared_as: Any) -> None:
    """A worker, a resumed run and a registration, while the table is written; ``datasets`` is not asked."""
    driver = prepared_as(table)
    sources = json.loads(json.dumps(driver.sources()))
    write(table, rows(0, 50), mode="overwrite")
    worker = prepared_as(table, state=driver.state, sources=sources)
    indices = torch.tensor([299, 0, 200])
    assert worker.data == driver.data
    for name, values in driver.splits["train"].batch(indices).items():
        assert torch.equal(worker.splits["train"].batch(indices)[name], values)
    assert set(fixed(sources)) == {"train"}
    assert prepared_as(table).data.rows["train"] == 50
    pinned = prepared_as(table, versions=versions_of(sources))
    assert pinned.data.fingerprint == driver.data.fingerprint


def test_all_trials_of_a_sweep_read_one_version(table: Path, tiny_project: Any) -> None:
    """Also those that ask ``datasets`` again, for a field that it reads."""

    def project(seed: int) -> Any:
        return tiny_project(recipe="sourced:FromParquet", config={"path": str(table), "data_seed": seed})

    driver = DataCache()
    driver.get(project(7))
    shared = json.loads(json.dumps(driver.share()))
    write(table, rows(0, 50))
    other = DataCache().get(project(8), shared=shared)
    assert other.data.tables == {"train": f"{table}@v1"}


def test_the_splits_of_a_run_are_of_one_version(tmp_path: Path, tiny_project: Any, monkeypatch: Any) -> None:
    """Partitions of one table, which is written between one and the next."""
    path = tmp_path / "t"
    parts = pa.array(["train", "validation", "test"] * 100)
    write(path, {**rows(0, 300), "part": parts}, partition_by=["part"])

    def datasets(self: Any) -> Any:
        from raymlops.recipe import Splits

        return Splits(*(f"{path}/part={part}" for part in ("train", "validation", "test")))

    monkeypatch.setattr(sourced.FromParquet, "datasets", datasets)
    versions: dict[str, int] = {}
    files = list_parquet(f"{path}/part=train", versions=versions)
    write(path, {**rows(0, 3), "part": pa.array(["test"] * 3)})
    assert files.rows == 100
    assert list_parquet(f"{path}/part=test", versions=versions).rows == 100
    assert list_parquet(f"{path}/part=test").rows == 103
    prepared = prepare(tiny_project(recipe="sourced:FromParquet"))
    assert prepared.data.rows == {"train": 100, "validation": 100, "test": 103}
    assert prepared.data.tables["test"] == f"{path}@v1/part=test"


def test_columns_of_partitions_and_later_columns_are_the_tables(tmp_path: Path) -> None:
    """What a file does not hold has its partition's value, or is null; types are those of the table."""
    path = tmp_path / "t"
    write(path, {"x": pa.array([1, 2], pa.int64()), "day": pa.array([1, 2], pa.int32())}, partition_by=["day"])
    more = {"x": pa.array([3], pa.int64()), "day": pa.array([1], pa.int32()), "name": ["late"]}
    write(path, more, schema_mode="merge")
    files = ParquetFiles.from_dict(json.loads(json.dumps(list_parquet(path).to_dict())))
    assert files == list_parquet(path)
    columns = files.columns()
    order = np.argsort(columns["x"])
    assert columns["x"][order].tolist() == [1, 2, 3]
    assert columns["day"][order].tolist() == [1, 2, 1]
    assert columns["name"][order].tolist() == [None, None, "late"]
    dataset = files.dataset().to_table(columns=["x", "day", "name"]).sort_by("x")
    assert dataset.to_pylist() == [
        {"x": 1, "day": 1, "name": None},
        {"x": 2, "day": 2, "name": None},
        {"x": 3, "day": 1, "name": "late"},
    ]


def test_a_table_without_a_column_of_the_signature(tmp_path: Path, prepared_as: Any) -> None:
    """Is told with its version and its columns, and how to read one that had it."""
    path = tmp_path / "t"
    write(path, rows(0, 10))
    renamed = {"breadth" if name == "width" else name: values for name, values in rows(0, 10).items()}
    write(path, renamed, mode="overwrite", schema_mode="overwrite")
    with pytest.raises(RecipeError, match=r"version 1 of .* lacks 'width'; it has .*breadth.*\n.*TABLE@v3"):
        prepared_as(path)
    assert prepared_as(f"{path}@v0").data.rows["train"] == 10


def test_a_version_whose_files_were_vacuumed(table: Path, prepared_as: Any) -> None:
    """Cannot be started on, and ends a run that reads it, with the name of the table."""
    driver = prepared_as(table)
    write(table, rows(0, 50), mode="overwrite")
    assert len(vacuum(table)) == 2
    with pytest.raises(NotFoundError, match=r"version 0 of .* no longer complete: 1 of its 1 files.*\n.*VACUUM"):
        prepared_as(f"{table}@v0")
    with pytest.raises(StorageError, match=r"of version 1 of the Delta table .*does not exist\n.*VACUUM"):
        prepared_as(table, state=driver.state, sources=driver.sources()).splits["train"].batch(torch.tensor([0]))
    assert prepared_as(table).data.rows["train"] == 50


def test_rows_that_were_deleted_are_not_read(table: Path) -> None:
    """A folder of files would have them still."""
    DeltaTable(table).delete("label = 1")
    files = list_parquet(table)
    assert files.rows == int((TABLE["label"] == 0).sum())
    assert isinstance(files.columns()["label"], np.ndarray)
    assert not files.columns()["label"].any()


@pytest.mark.parametrize("name", ["t@v2", "a@2026-11-27", "a@2026-13-45", "dataset=x", "dataset=x@v1", "x.parquet"])
def test_a_table_whose_folder_is_named_like_a_version_or_a_file(tmp_path: Path, name: str) -> None:
    """Is that table, also at a version, and by a partition; its deleted rows are not read."""
    path = tmp_path / "lake" / name
    path.parent.mkdir()
    write(path, {"x": [1, 2, 3], "k": ["a", "a", "b"]}, partition_by=["k"])
    DeltaTable(path).delete("x >= 2")
    for text, expected in ((path, [1]), (f"{path}@v0", [1, 2, 3]), (f"{path}/k=a", [1]), (f"{path}@v0/k=b", [3])):
        files = list_parquet(text)
        assert sorted(files.columns()["x"].tolist()) == expected
        assert files.table is not None
        assert list_parquet(files.table.name) == files


@pytest.mark.parametrize(
    "name", ["lake", "lake/*/*/*.parquet", "lake/t/**", "lake/t/k=a/*", "lake/t/k=a/{file}", "link", "link/*.parquet"]
)
def test_files_of_a_table_are_refused(tmp_path: Path, name: str) -> None:
    """As plain Parquet they have rows that were deleted; the table is named."""
    path = tmp_path / "lake" / "t"
    path.parent.mkdir()
    write(path, {"x": [1, 2], "k": ["a", "b"]}, partition_by=["k"])
    DeltaTable(path).delete("x = 2")
    (file,) = (path / "k=a").iterdir()
    (tmp_path / "link").symlink_to(path / "k=a")
    with pytest.raises(UsageError, match=rf"a file of the Delta table {path}, .*\n.*TABLE@v3"):
        list_parquet(str(tmp_path / name).format(file=file.name))


def test_a_table_and_its_files_in_an_object_store(tmp_path: Path, s3: FakeS3) -> None:
    """As on a disk; credentials that are good for one prefix alone read files there."""
    write(tmp_path / "t", {"x": [1, 2], "k": ["a", "b"]}, partition_by=["k"])
    for path in (path for path in (tmp_path / "t").rglob("*") if path.is_file()):
        s3.objects[f"bucket/lake/dataset=x/{path.relative_to(tmp_path / 't')}"] = path.read_bytes()
    assert list_parquet(s3.uri("bucket/lake/dataset=x")).rows == 2
    one = list_parquet(s3.uri("bucket/lake/dataset=x@v0/k=a"))
    assert one.table is not None
    assert list_parquet(one.table.name) == one
    for name in ("lake", "lake/dataset=x/k=*/*", one.files[0].uri.partition("?")[0].removeprefix("s3://bucket/")):
        with pytest.raises(UsageError, match=r"a file of the Delta table s3://bucket/lake/dataset=x\?"):
            list_parquet(s3.uri(f"bucket/{name}"))
    s3.objects["bucket/mine/k=a/a.parquet"] = next((tmp_path / "t" / "k=a").iterdir()).read_bytes()
    s3.refuse = lambda method, path: method == "HEAD" and not path.startswith("bucket/mine/k=a")
    for name in ("mine/k=a", "mine/k=a/a.parquet"):
        assert list_parquet(s3.uri(f"bucket/{name}")).columns()["k"].tolist() == ["a"]
    assert "HEAD bucket/mine/_delta_log" in s3.requests


def test_a_storage_that_does_not_answer_hides_no_table(monkeypatch: Any) -> None:
    """Without its log a partition's files would be read with what was deleted."""

    def away(uri: str) -> bool:
        if uri.endswith("k=a"):
            return False
        raise StorageError(f"{uri} cannot be read") from OSError("AWS Error: HTTP status 503: SLOW_DOWN")

    monkeypatch.setattr(tables, "has_table", away)
    for look in (tables.find_table, tables.table_above):
        with pytest.raises(StorageError, match="s3://lake/t cannot be read"):
            look("s3://lake/t/k=a")


@pytest.mark.parametrize("name", ["dump@2026-11-27_full", "dump@20261399"])
def test_a_folder_whose_name_has_no_time_in_it_is_a_folder(tmp_path: Path, name: str) -> None:
    """Where no table is near."""
    (tmp_path / name).mkdir()
    pq.write_table(pa.table({"x": [1]}), tmp_path / name / "a.parquet")
    assert list_parquet(tmp_path / name).rows == 1


def test_a_table_in_a_list_is_refused(table: Path) -> None:
    """Its version could not be one of the list."""
    with pytest.raises(RecipeError, match="in a list of 2"):
        list_parquet([str(table), str(table)])


def test_the_digest_knows_the_values_of_partitions(tmp_path: Path) -> None:
    """Two tables whose files are the same."""
    for name, day in (("a", 1), ("b", 2)):
        write(tmp_path / name, {"x": [1], "day": [day]}, partition_by=["day"])
    assert list_parquet(tmp_path / "a").digest() != list_parquet(tmp_path / "b").digest()
