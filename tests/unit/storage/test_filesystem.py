"""Files and folders mean the same on a disk and on an object store."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from pyarrow import fs

from raymlops.errors import NotFoundError, StorageError
from raymlops.storage import filesystem as storage
from raymlops.storage.folders import top_level

if TYPE_CHECKING:
    from pathlib import Path

    from fake_s3 import FakeS3


@pytest.fixture(params=["path", "file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return request.getfixturevalue("s3").uri("bucket/runs")
    return f"file://{tmp_path}/runs" if request.param == "file" else f"{tmp_path}/runs"


def test_what_is_below_a_uri_keeps_its_query() -> None:
    """An endpoint or a region stands behind the path, not in it."""
    assert storage.join("s3://b/runs/?region=x", "a", "b") == "s3://b/runs/a/b?region=x"
    assert storage.join("/runs/what?", "a") == "/runs/what?/a"


@pytest.mark.parametrize("uri", ["s3://b/a%20b/c?region=x", "s3://b?region=x", "gs://b/a/", "mock:///a/b", "mock://"])
def test_paths_are_what_pyarrow_makes_of_them(uri: str) -> None:
    """One client a bucket is kept; the path in it is the one that pyarrow reads from the whole URI."""
    filesystem, path = storage.open_filesystem(uri)
    assert path == fs.FileSystem.from_uri(uri)[1].rstrip("/")
    assert storage.open_filesystem(uri)[0] is filesystem


def test_a_small_file_is_replaced(place: str) -> None:
    """A reader sees the newest content, and nothing else lies there."""
    for data in (b"old", b"new"):
        storage.write_bytes(storage.join(place, "index.json"), data)
    assert storage.read_bytes(storage.join(place, "index.json")) == b"new"
    assert storage.listing(place) == {"index.json": None}


def test_folders_are_listed_with_their_files(place: str) -> None:
    """Files whose names begin with a dot count; a place that does not exist holds nothing."""
    assert storage.listing(place) == {}
    for name in ("a/one", "a/.metadata", "b/two", "three"):
        storage.write_bytes(storage.join(place, name), b"x")
    assert storage.listing(place) == {"a": {"one", ".metadata"}, "b": {"two"}, "three": None}


def test_a_folder_that_is_made_while_it_is_listed_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow's listing fails where a folder is missing at first and there when it asks why."""

    class Disk(fs.LocalFileSystem):
        def get_file_info(self, of: object) -> object:
            if not (tmp_path / "made").exists():
                (tmp_path / "made/within").mkdir(parents=True)
                raise FileNotFoundError(2, "Cannot list directory")
            return super().get_file_info(of)

    monkeypatch.setattr(storage, "open_filesystem", lambda uri: (Disk(), uri))
    assert storage.listing(f"{tmp_path}/made") == {"within": frozenset()}


def test_what_is_not_there_is_not_found(place: str) -> None:
    """No file, or none because its folder is a file."""
    storage.write_bytes(storage.join(place, "file"), b"x")
    for name in ("nothing", "file/below"):
        with pytest.raises(NotFoundError, match="there is no file"):
            storage.read_bytes(storage.join(place, name))


def test_the_digest_is_of_the_content(place: str) -> None:
    """As hashlib says, over more than one block of 4 MiB."""
    data = b"0123456789" * 500_000
    storage.write_bytes(storage.join(place, "a"), data)
    with storage.reader(storage.join(place, "a")) as stream:
        assert storage.digest(stream) == (len(data), hashlib.sha256(data).hexdigest())


def test_a_folder_is_removed_with_all_in_it(place: str) -> None:
    """Its neighbours stay, and removing what is not there is fine."""
    for name in ("a/one", "a/two", "ab/three", "four"):
        storage.write_bytes(storage.join(place, name), b"x")
    storage.delete(storage.join(place, "a"), first="two")
    storage.delete(storage.join(place, "nothing"))
    assert {name: files for name, files in storage.listing(place).items() if files != frozenset()} == {
        "ab": {"three"},
        "four": None,
    }


def test_a_file_is_uploaded_with_its_digest(s3: FakeS3, tmp_path: Path) -> None:
    """In parts, where it is large: 12 MB are two of Arrow's 10 MB."""
    (tmp_path / "big").write_bytes(b"x" * 12_000_000)
    size, digest = storage.upload(tmp_path / "big", s3.uri("bucket/a/big"))
    assert (size, digest) == (12_000_000, hashlib.sha256(b"x" * 12_000_000).hexdigest())
    assert s3.objects["bucket/a/big"] == b"x" * 12_000_000
    storage.download(s3.uri("bucket/a/big"), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"x" * 12_000_000


def test_a_store_that_refuses_is_named(s3: FakeS3) -> None:
    """The error says what to change, and no credential."""
    s3.refuse = lambda method, _path: method in {"PUT", "POST"}
    with pytest.raises(StorageError, match="cannot be used") as raised:
        storage.write_bytes(s3.uri("bucket/a").replace("s3://", "s3://key:word@"), b"x")
    assert "key:word" not in str(raised.value)


def test_what_cannot_be_written_is_found_by_a_probe(tmp_path: Path) -> None:
    """A file where a folder should be, and an unknown scheme, are refused with what to change."""
    (tmp_path / "file").write_text("in the way")
    for uri in (f"{tmp_path}/file/runs", "nowhere://bucket/runs"):
        with pytest.raises(StorageError, match="cannot be used") as raised:
            storage.check_writable(uri)
        assert "storage.path" in str(raised.value.hint)


def test_a_probe_leaves_nothing(place: str) -> None:
    """A folder that can be written is made, and is empty afterwards."""
    storage.check_writable(place)
    assert storage.listing(place) == {}


def test_what_cannot_fit_is_refused_before_it_is_written(place: str) -> None:
    """The folder need not exist yet; 1 TB is more than the disk that runs this has free."""
    storage.check_space(place, need_bytes=1)
    with pytest.raises(StorageError, match=r"MB free, 1000000000000\.0 MB are needed"):
        storage.check_space(place, need_bytes=10**18)


def test_folders_that_no_object_marks_are_told_by_what_lies_in_them() -> None:
    """As on Google Cloud Storage, where pyarrow names files alone."""
    from pyarrow.fs import FileInfo, FileType

    named = {path: FileInfo(f"bucket/runs/{path}", FileType.File, size=1) for path in ("a/b/c", "a/d", "e")}
    found = top_level(named, "bucket/runs")
    assert {name: (info.path, info.is_file) for name, info in found.items()} == {
        "a": ("bucket/runs/a", False),
        "e": ("bucket/runs/e", True),
    }
