"""Names of files lead to the files, which are counted by their footers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
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
    assert [uri for uri, _ in found] == [f"{folder}/{file}" for file in expected]


def test_a_list_keeps_its_order(folder: Path) -> None:
    """Rows count through the files as they stand in a list, and the list survives JSON."""
    files = list_parquet([folder / "b.parquet", str(folder / "a.parquet")])
    assert files.group_rows.tolist() == [2, 2, 1, 2, 2, 1]
    again = ParquetFiles.from_dict(json.loads(json.dumps(files.to_dict())))
    assert again == files
    assert again.columns()["x"].tolist() == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    assert again.rows == again.dataset().count_rows() == 10


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
