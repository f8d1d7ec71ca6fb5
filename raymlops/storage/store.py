"""The storage that predictions and labels are kept on: a folder, or any filesystem that pyarrow opens.

Owns how a file appears (whole or not at all) and how failures are told. Knows nothing of what is in the files.

On a disk a file is written beside its place, flushed and renamed, and its folder is flushed too. An object store has
neither; there an object appears when its upload is complete.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import uuid
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import fs

from raymlops.config.credentials import redact
from raymlops.config.paths import local_path
from raymlops.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import IO

_CHUNK_BYTES = 4 * 1024 * 1024


class Store:
    """Files below one folder or URI, by paths relative to it. Opening it touches nothing.

    Every method raises StorageError where the storage cannot be used.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.local: Path | None = local_path(uri)
        with self._told():
            if self.local is not None:
                self._filesystem: Any = fs.LocalFileSystem()
                self._base = str(self.local)
            else:
                self._filesystem, self._base = fs.FileSystem.from_uri(uri)
        self._base = self._base.rstrip("/")

    def folders(self, path: str) -> list[str]:
        """Return the names of the folders in a folder, sorted; none where there is no such folder."""
        return sorted(info.base_name for info in self._infos(path) if info.type == fs.FileType.Directory)

    def files(self, path: str) -> dict[str, int]:
        """Return the names of the files in a folder, sorted, with their sizes; none where there is no such folder."""
        return {info.base_name: info.size for info in self._infos(path) if info.type == fs.FileType.File}

    def exists(self, path: str) -> bool:
        """Return whether there is such a file."""
        with self._told():
            return bool(self._filesystem.get_file_info(self._full(path)).type == fs.FileType.File)

    def open(self, path: str, *, size: int) -> Any:
        """Return a file of this size, to be read at any place; a small one is read at once.

        Raises:
            FileNotFoundError: there is no such file any more.
        """
        with self._told(missing=True):
            file = self._filesystem.open_input_file(self._full(path))
            if size > _CHUNK_BYTES:
                return file
            with file:
                return pa.BufferReader(file.read_buffer())

    def write(self, path: str, data: pa.Buffer) -> None:
        """Write one file, which replaces what is there."""
        if self.local is not None:
            with self.create(path) as stream:
                stream.write(data)
            return
        with self._told(), self._filesystem.open_output_stream(self._full(path)) as stream:
            stream.write(data)

    @contextlib.contextmanager
    def create(self, path: str) -> Iterator[IO[bytes]]:
        """Yield a stream whose content becomes a file at the end of the block; nothing does if that raises."""
        with self._told():
            if self.local is None:
                # Closing an upload completes it, also after an error: it begins once all of it is here.
                with tempfile.TemporaryFile() as aside:
                    yield aside
                    aside.seek(0)
                    with self._filesystem.open_output_stream(self._full(path)) as stream:
                        while chunk := aside.read(_CHUNK_BYTES):
                            stream.write(chunk)
                return
            target = self.local / path
            _make(target.parent)
            beside = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
            try:
                with beside.open("xb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                beside.replace(target)
            finally:
                beside.unlink(missing_ok=True)
            _sync(target.parent)

    def remove(self, path: str) -> None:
        """Remove a file; none is fine too."""
        with self._told(), contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_file(self._full(path))

    def remove_folder(self, path: str) -> None:
        """Remove a folder with all that it holds; none is fine too."""
        with self._told(), contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_dir(self._full(path))

    def remove_empty(self, path: str) -> None:
        """Remove a folder that holds nothing; an object store has none."""
        if self.local is not None:
            with contextlib.suppress(OSError):
                (self.local / path).rmdir()

    def _infos(self, path: str) -> list[Any]:
        with self._told():
            selector = fs.FileSelector(self._full(path), allow_not_found=True)
            return sorted(self._filesystem.get_file_info(selector), key=lambda info: str(info.base_name))

    def _full(self, path: str) -> str:
        return f"{self._base}/{path}"

    @contextlib.contextmanager
    def _told(self, *, missing: bool = False) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            if missing and isinstance(error, FileNotFoundError):
                raise
            raise StorageError(
                redact(f"{self.uri!r} cannot be used: {error}"),
                hint="Set storage.path to a folder or URI that this user may write and that has space.",
            ) from error


class Namer:
    """Names of the files of one writer: in the order of time, and never one that anybody had before."""

    def __init__(self, writer: str, *, now: Callable[[], float] = time.time) -> None:
        self._writer = "".join(c if c.isalnum() else "_" for c in writer)[-32:] + "_" + uuid.uuid4().hex[:8]
        self._now = now
        self._last = 0

    def next(self) -> str:
        """Return a new name."""
        self._last = max(self._last + 1, int(self._now() * 1000))
        return f"{self._last:013d}-{self._writer}.parquet"


def _make(folder: Path) -> None:
    """Make a folder, and flush the entry of each that is new."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        _sync(new.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
