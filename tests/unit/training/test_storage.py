"""Folders are whole or absent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from raymlops.errors import NotFoundError, StorageError
from raymlops.training import storage

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"weights")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_published_folder_is_read_back(tmp_path: Path, scheme: str) -> None:
    """A path and a file URI mean the same; nothing is left beside the folder."""
    uri = f"{scheme}{tmp_path}/deep/folder"
    storage.publish(uri, write)
    with storage.verified(uri) as folder:
        assert (folder / "a.bin").read_bytes() == b"weights"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["folder"]


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    """The error names the file, what it is and what it should be."""
    storage.publish(f"{tmp_path}/f", write)
    path = tmp_path / "f" / "a.bin"
    path.unlink() if damage == "remove" else path.write_bytes(b"Weights")
    with pytest.raises(StorageError, match=r"a\.bin is damaged"), storage.verified(f"{tmp_path}/f"):
        pass


def test_a_folder_without_manifest_is_not_there(tmp_path: Path) -> None:
    """On an object store the manifest comes last: without it, the folder is unfinished."""
    with pytest.raises(NotFoundError, match="no checkpoint"), storage.verified(str(tmp_path)):
        pass


def test_a_newer_format_is_refused_clearly(tmp_path: Path) -> None:
    """The error says which versions can be read."""
    storage.publish(f"{tmp_path}/f", write)
    manifest = tmp_path / "f" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": 99}))
    with (
        pytest.raises(StorageError, match="has format 99; this raymlops reads up to 1"),
        storage.verified(f"{tmp_path}/f"),
    ):
        pass


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """The folder appears whole or not at all."""

    def fail(folder: Path) -> None:
        write(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space left on device"):
        storage.publish(f"{tmp_path}/f", fail)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_found_by_a_probe(tmp_path: Path) -> None:
    """A file where a folder should be, and an unknown scheme, are refused with what to change."""
    (tmp_path / "file").write_text("in the way")
    for uri in (f"{tmp_path}/file/runs", "nowhere://bucket/runs"):
        with pytest.raises(StorageError, match="cannot be used") as raised:
            storage.check_writable(uri)
        assert "storage.path" in str(raised.value.hint)


def test_a_probe_leaves_nothing(tmp_path: Path) -> None:
    """A folder that can be written is made, and is empty afterwards."""
    storage.check_writable(f"{tmp_path}/new/runs")
    assert list((tmp_path / "new" / "runs").iterdir()) == []
