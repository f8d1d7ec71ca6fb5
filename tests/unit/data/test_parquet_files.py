"""Names of files lead to the files, which are counted by their footers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_s3 import fake_s3

from raymlops.data.parquet.files import GroupReader, ParquetFiles, block_offsets, list_parquet
from raymlops.errors import RecipeError, StorageError
from raymlops.storage.locate import find_files

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("a.parquet", "b.parquet", "2024/c.parquet", "2024/d.pq", "2024/deep/e.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of 5 rows in row groups of 2, among others that are none."""
    root = tmp_path / "the data"
    for number, name in enumerate([*NAMES, "_temporary/f.parquet", ".hidden.parquet"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"x": range(number * 5, number * 5 + 5)}), path, row_group_size=2)
    (root / "_SUCCESS").touch()
    (root / "notes.txt").write_text("no data")
    return root


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", ["2024/c.parquet", "2024/d.pq", "2024/deep/e.parquet", "a.parquet", "b.parquet"]),
        ("/*.parquet", ["a.parquet", "b.parquet"]),
        ("/[!b].parquet", ["a.parquet"]),
        ("/?.parquet", ["a.parquet", "b.parquet"]),
        ("/20*/*.parquet", ["2024/c.parquet"]),
        ("/**/*.parquet", ["2024/c.parquet", "2024/deep/e.parquet", "a.parquet", "b.parquet"]),
        ("/2024/d.pq", ["2024/d.pq"]),
    ],
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_name_leads_to_its_files(folder: Path, name: str, expected: list[str], scheme: str) -> None:
    """A folder, a glob and a file are found as a path and as a URI; files come by their paths, hidden ones never."""
    text = f"{folder}{name}"
    found = find_files(text if not scheme else scheme + text.replace(" ", "%20"))
    assert [file.uri for file in found] == [f"{folder}/{file}" for file in expected]


def test_a_list_keeps_its_order(folder: Path) -> None:
    """Rows count through the files as they stand in a list, and the list survives JSON."""
    files = list_parquet([folder / "b.parquet", str(folder / "a.parquet")])
    assert files.group_rows.tolist() == [2, 2, 1, 2, 2, 1]
    again = ParquetFiles.from_dict(json.loads(json.dumps(files.to_dict())))
    assert again == files
    assert again.columns()["x"].tolist() == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    assert again.rows == again.dataset().count_rows() == 10


@pytest.mark.parametrize("name", ["", "/*/*.parquet", "/*/*/*.parquet", "/carrier=A*/day=1/*"])
def test_folders_of_a_partition_are_columns(tmp_path: Path, name: str) -> None:
    """As Spark writes them and reads them: whole numbers, or texts, or null."""
    days = {"carrier=A%2FA/day=1": 1, "carrier=007/day=2": 2, "carrier=__HIVE_DEFAULT_PARTITION__/day=10": 3}
    for folder, x in days.items():
        (tmp_path / folder).mkdir(parents=True)
        pq.write_table(pa.table({"x": [x]}), tmp_path / folder / "a.parquet")
    if name == "/*/*.parquet":
        with pytest.raises(RecipeError, match="matches no file"):
            list_parquet(f"{tmp_path}{name}")
        return
    files = ParquetFiles.from_dict(json.loads(json.dumps(list_parquet(f"{tmp_path}{name}").to_dict())))
    expected = [
        {"x": 2, "carrier": "007", "day": 2},
        {"x": 1, "carrier": "A/A", "day": 1},
        {"x": 3, "carrier": None, "day": 10},
    ]
    expected = expected[1:2] if name.endswith("/day=1/*") else expected
    reader = GroupReader(files)
    read = [reader.read(group) for group in range(len(files.places))]
    assert [table.to_pylist()[0] for table, _ in read] == expected
    assert {tuple(names) for _, names in read} == {("x", "carrier", "day")}
    assert reader.read(0, ["day"])[0].to_pylist() == [{"day": expected[0]["day"]}]
    assert files.columns()["carrier"].tolist() == [row["carrier"] for row in expected]
    assert files.dataset().to_table().to_pylist() == expected


@pytest.mark.parametrize("name", ["day=2", "day=2/_hour=08", "day=2/*/*.parquet", "day=2/_hour=08/a.parquet"])
def test_folders_of_a_partition_are_columns_whichever_is_named(tmp_path: Path, name: str, monkeypatch) -> None:
    """A job of each night names that of its day or hour: a model that knows the column is asked with it."""
    (tmp_path / "k=v/between/day=2/_hour=08").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "k=v/between")
    pq.write_table(pa.table({"x": [1]}), "day=2/_hour=08/a.parquet")
    (row,) = GroupReader(list_parquet(name)).read(0)[0].to_pylist()
    assert row == {"x": 1, "day": 2, "_hour": 8}


def test_a_file_that_holds_the_column_of_its_folder_has_its_own(tmp_path: Path) -> None:
    """Nothing that is written in a file is replaced."""
    (tmp_path / "x=1").mkdir()
    pq.write_table(pa.table({"x": [2]}), tmp_path / "x=1" / "a.parquet")
    assert GroupReader(list_parquet(tmp_path)).read(0)[0].to_pylist() == [{"x": 2}]


def test_times_in_int96_are_instants_that_nanoseconds_cannot_hold(tmp_path: Path) -> None:
    """Spark writes them for an open end, and a time before 1677; within lists too. Times of no place stay so."""
    times = [datetime(9999, 12, 31, 23, 59, 59), datetime(1, 1, 1), datetime(2026, 1, 1, microsecond=7)]  # noqa: DTZ001
    instants = [time.replace(tzinfo=UTC) for time in times]
    nested = [{"n": 1, "all": [{"t": time}]} for time in times]
    table = pa.table({"i": [1, 2, 3], "s": nested, "t": pa.array(times, pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True, store_schema=False)
    files = list_parquet(tmp_path)
    found = GroupReader(files).read(0)[0]
    assert GroupReader(files).read(0, ["t"])[0].to_pydict() == {"t": instants}
    assert [row["all"][0]["t"] for row in found["s"].to_pylist()] == instants
    assert files.dataset().to_table().equals(found)
    assert files.columns()["t"].tolist() == times
    pq.write_table(table, tmp_path / "a.parquet")
    assert GroupReader(list_parquet(tmp_path)).read(0)[0]["t"].to_pylist() == times


def test_the_digest_of_files_knows_their_content_and_not_their_names(folder: Path, tmp_path: Path) -> None:
    """A copy is the same data; another order, a byte or an extreme of a column is not. No row is decoded."""
    files = list_parquet(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert list_parquet(tmp_path / "copy").digest() == files.digest()
    again = ParquetFiles.from_dict(json.loads(json.dumps(files.to_dict())))
    assert again.digest() == files.digest()
    assert replace(files, files=files.files[::-1]).digest() != files.digest()
    path = tmp_path / "copy/a.parquet"
    content = bytearray(path.read_bytes())
    content[9] ^= 1
    path.write_bytes(content)
    assert list_parquet(tmp_path / "copy").digest() != files.digest()


def test_the_digest_of_a_file_that_changes_is_refused(folder: Path) -> None:
    """One that shrinks or goes while a run is prepared is named."""
    files = list_parquet(folder)
    path = folder / "b.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StorageError, match=r"b\.parquet changed since the run was prepared: it has \d+ bytes, not \d+"):
        files.digest()
    path.unlink()
    with pytest.raises(StorageError, match=r"b\.parquet changed since the run was prepared: it does not exist"):
        files.digest()


def test_blocks_are_spread_over_all_files() -> None:
    """Small files are covered; of large ones four blocks of 100 bytes, the first and the last byte among them."""
    sizes = [250, 100, 0, 160]
    covered = block_offsets(sizes, blocks=100, block_bytes=100)
    for size, offsets in zip(sizes, covered, strict=True):
        assert {byte for start in offsets for byte in range(start, min(start + 100, size))} == set(range(size))
    large = block_offsets([1000, 30_000], blocks=4, block_bytes=100)
    assert [offsets.tolist() for offsets in large] == [[0], [9300, 19_600, 29_900]]


def test_many_files_are_read_with_few_open(folder: Path) -> None:
    """Row groups come back right when there are more files than are kept open."""
    paths = []
    for number in range(12):
        pq.write_table(pa.table({"x": [number]}), folder / f"many-{number}.parquet")
        paths.append(folder / f"many-{number}.parquet")
    reader = GroupReader(list_parquet(paths))
    for number in [*range(12), *range(12)]:
        table, names = reader.read(number, ["x", "y"])
        assert (table["x"].to_pylist(), names) == ([number], ["x"])
    assert reader._file.cache_info().currsize == 8


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nowhere", RecipeError, "'.*nowhere', which does not exist"),
        ("*.csv", RecipeError, "which matches no file"),
        ("_temporary", RecipeError, None),
        ("notes.txt", StorageError, r"notes\.txt cannot be read"),
        ("ftp://host/x", StorageError, r"ftp://host/x cannot be read: .*ftp"),
    ],
)
def test_what_is_no_parquet_is_refused(folder: Path, name: str, error: type, message: str | None) -> None:
    """The error names what was asked for; a hidden folder that is asked for by name is no longer hidden."""
    if message is None:
        assert list_parquet(folder / name).rows == 5
        return
    with pytest.raises(error, match=message):
        list_parquet(name if "://" in name else folder / name)


def test_files_in_an_object_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, a glob and a list of S3 URIs, names with spaces among them, are read; a replaced object is noticed."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    with fake_s3() as store:
        for name in NAMES:
            store.objects[f"bucket/my data/{name}"] = (folder / name).read_bytes()
        files = list_parquet(store.uri("bucket/my%20data"))
        assert files.rows == 25
        assert list_parquet(store.uri("bucket/my%20data/*.parquet")).rows == 10
        assert list_parquet([file.uri for file in files.files]) == files
        reader = GroupReader(files)
        assert reader.read(3, ["x"])[0]["x"].to_pylist() == [15, 16]
        assert files.dataset().count_rows() == 25
        store.objects["bucket/my data/a.parquet"] += b"x"
        with pytest.raises(StorageError, match=r"a\.parquet.*changed since the run was prepared"):
            files.verify()
        with pytest.raises(RecipeError, match="which does not exist"):
            list_parquet(store.uri("bucket/other"))


@pytest.mark.parametrize("uri", ["s3://key:secret@bucket/x", "s3://bucket/x?secret_key=y", "abfs://c/x?token=z"])
def test_a_uri_with_a_secret_is_refused(uri: str) -> None:
    """The list of files is kept with the run, so a secret may not be part of it, nor of the error."""
    with pytest.raises(RecipeError, match="holds a credential") as caught:
        list_parquet(uri)
    assert "secret@" not in str(caught.value)
