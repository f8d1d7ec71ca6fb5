"""The storage that predictions and labels are kept on: files below one folder or URI, by paths relative to it.

Owns the names of its files. How a file appears, and how a failure is reported, is ``filesystem``'s.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raymlops.config.paths import local_path
from raymlops.storage import filesystem

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import BinaryIO


class Store:
    """Files below one folder or URI. Opening it touches nothing.

    Every method raises StorageError where the storage cannot be used.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def folders(self, path: str) -> list[str]:
        """Return the names of the folders in a folder, sorted; none where there is no such folder."""
        return [name for name, info in filesystem.entries(self._at(path)).items() if not info.is_file]

    def files(self, path: str) -> dict[str, int]:
        """Return the names of the files in a folder, sorted, with their sizes; none where there is no such folder."""
        return {name: info.size for name, info in filesystem.entries(self._at(path)).items() if info.is_file}

    def size(self, path: str) -> int | None:
        """Return the size of a file; None where there is no such file."""
        info = filesystem.info(self._at(path))
        return int(info.size) if info.is_file else None

    def open(self, path: str, *, size: int) -> Any:
        """Return a seekable file of this size; a small one is read into memory.

        Raises:
            FileNotFoundError: the file no longer exists.
        """
        with filesystem.errors(self.uri, passing=(FileNotFoundError,)):
            opened, full = filesystem.open_filesystem(self._at(path))
            file = opened.open_input_file(full)
            if size > filesystem.CHUNK_BYTES:
                return file
            with file:
                return pa.BufferReader(file.read_buffer())

    def write(self, path: str, data: pa.Buffer) -> None:
        """Write one file, which replaces what is there."""
        filesystem.write_bytes(self._at(path), data, mode=self._mode())

    def write_new(self, path: str, data: pa.Buffer) -> None:
        """Write one file unless it is there."""
        filesystem.write_bytes(self._at(path), data, mode=self._mode(), new=True)

    def create(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Return a context with a stream whose content becomes a file at its end, and does not if that raises."""
        return filesystem.create(self._at(path), mode=self._mode())

    def remove(self, path: str) -> None:
        """Remove a file, or a folder with all its content; do nothing if it does not exist."""
        filesystem.delete(self._at(path))

    def remove_empty(self, path: str) -> None:
        """Remove a folder that holds nothing; an object store has none."""
        if (folder := local_path(self._at(path))) is not None:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _mode(self) -> int:
        """Return the mode of a local file: what callers sent is read by those who share the folder alone."""
        folder = local_path(self.uri)
        return filesystem.mode_in(folder) if folder is not None and folder.is_dir() else 0o600

    def _at(self, path: str) -> str:
        return filesystem.join(self.uri, path)


class Namer:
    """Names of the files of one writer: unique, and sorted by time."""

    def __init__(self, writer: str, *, now: Callable[[], float] = time.time) -> None:
        self._writer = "".join(c if c.isalnum() else "_" for c in writer)[-32:] + "_" + uuid.uuid4().hex[:8]
        self._now = now
        self._last = 0

    def next(self) -> str:
        """Return a new name."""
        self._last = max(self._last + 1, int(self._now() * 1000))
        return f"{self._last:013d}-{self._writer}.parquet"
