"""Files and folders on a disk or on any pyarrow filesystem, under one set of names.

Owns paths and URIs, how files and folders are published, and how failures are told. Knows nothing of manifests.

On a disk (NFS included) a file is written under a temporary name, flushed and renamed. An object store can do neither:
an object appears once its upload is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
import time
import uuid
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

from raymlops.config.credentials import redact
from raymlops.config.paths import local_path
from raymlops.errors import NotFoundError, StorageError
from raymlops.storage.folders import entries_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Location = str | os.PathLike[str]
"""A path, a ``file://`` URI or the URI of a filesystem that pyarrow opens."""
FOLDER = "bundles"
CHUNK_BYTES = 4 * 1024 * 1024
_FREE_BYTES = 32 * 1024 * 1024
_ABANDONED_S = 24 * 3600.0


def root_of(bundle_uri: str) -> str:
    """Return the storage that a bundle was written under: ``write_bundle`` puts it into ``<root>/bundles/<digest>``."""
    path, mark, options = bundle_uri.partition("?")
    return path.rpartition(f"/{FOLDER}/")[0] + mark + options


def join(uri: Location, *parts: str) -> str:
    """Return the URI or absolute path of something below ``uri``; a URI keeps its query."""
    if (path := local_path(uri)) is not None:
        return str(path.joinpath(*parts))
    base, mark, query = os.fspath(uri).partition("?")
    return "/".join([base.rstrip("/"), *parts]) + mark + query


def absolute(uri: str) -> str:
    """Return a path or URI that is independent of the working directory."""
    path = local_path(uri)
    return uri if path is None else str(path)


def open_filesystem(uri: Location) -> tuple[Any, str]:
    """Return the ``pyarrow.fs`` filesystem of a file or folder, and its path there.

    Raises:
        OSError, pyarrow.ArrowException: pyarrow knows no such filesystem, or cannot open it.
    """
    from pyarrow import fs

    if (local := local_path(uri)) is not None:
        return fs.LocalFileSystem(), str(local)
    parts = urlsplit(os.fspath(uri))
    filesystem, root = _client(urlunsplit((parts.scheme, parts.netloc, "/", parts.query, "")))
    path = f"{root.rstrip('/')}{unquote(parts.path)}".rstrip("/")
    return filesystem, path if root else path.lstrip("/")


@lru_cache(maxsize=16)
def _client(root: str) -> tuple[Any, str]:
    """Return the filesystem of a host or bucket. Kept: making one costs 30 ms and requests, more than a small file."""
    from pyarrow import fs

    filesystem, path = fs.FileSystem.from_uri(root)
    return filesystem, str(path)


@contextlib.contextmanager
def errors(uri: Location, *, passing: tuple[type[OSError], ...] = ()) -> Iterator[None]:
    """Turn what a disk or pyarrow raises into a StorageError that names ``uri``, except for ``passing``."""
    try:
        yield
    except passing:
        raise
    except _failures() as error:
        raise StorageError(
            redact(f"{os.fspath(uri)!r} cannot be used: {error}"),
            hint="Set storage.path to a folder that this user may write and that has space, or to the URI of a "
            "filesystem that pyarrow knows: s3://, gs://, abfs://, hdfs://.",
        ) from error


def _failures() -> tuple[type[Exception], ...]:
    arrow = sys.modules.get("pyarrow")  # a process that reads a disk alone need not import it
    return (OSError,) if arrow is None else (OSError, arrow.ArrowException)


@contextlib.contextmanager
def reader(uri: Location, *, flags: int = 0, seekable: bool = False) -> Iterator[BinaryIO]:
    """Open a file to be read; ``flags`` of ``os.open`` are for a local one. ``seekable``, it is read by range.

    Raises:
        NotFoundError: there is no such file.
        StorageError: it cannot be read.
    """
    stream: Any
    with errors(uri):
        try:
            if (local := local_path(uri)) is not None:
                stream = os.fdopen(os.open(local, os.O_RDONLY | flags), "rb")
            else:
                filesystem, path = open_filesystem(uri)
                stream = filesystem.open_input_file(path) if seekable else filesystem.open_input_stream(path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise NotFoundError(f"there is no file {os.fspath(uri)!r}") from error
        with stream:
            yield stream


def read_bytes(uri: Location) -> bytes:
    """Return a file's content.

    Raises:
        NotFoundError: there is no such file.
        StorageError: it cannot be read.
    """
    with reader(uri) as stream:
        return bytes(stream.read())


class Sink(Protocol):
    """What takes pieces of a file."""

    def write(self, piece: bytes, /) -> object:
        """Take the next piece."""


def digest(source: BinaryIO, *sinks: Sink, most_bytes: int | None = None) -> tuple[int, str]:
    """Read a stream, copy it to ``sinks``, and return the size of what was read in bytes and its SHA-256.

    It is read to its end, or as far as ``most_bytes``.
    """
    sha256, size = hashlib.sha256(), 0
    while chunk := source.read(CHUNK_BYTES if most_bytes is None else min(CHUNK_BYTES, most_bytes - size)):
        sha256.update(chunk)
        size += len(chunk)
        for sink in sinks:
            sink.write(chunk)
    return size, sha256.hexdigest()


def mode_in(folder: Path) -> int:
    """Return the mode of a private file in a local folder: those who may write in the folder may read and write it."""
    return 0o600 | 3 * (folder.stat().st_mode & 0o022)


@contextlib.contextmanager
def create(uri: Location, *, mode: int = 0o666, new: bool = False) -> Iterator[BinaryIO]:
    """Yield a stream whose content becomes a file at the end of the block, and does not if that raises.

    A reader sees the previous content or the new one. ``mode`` is that of a local file, less the umask. A local file
    that is to be ``new`` stays as it is where it is there.

    Raises:
        StorageError: it cannot be written.
    """
    with errors(uri):
        if (target := local_path(uri)) is None:
            # Closing an upload completes it, also after an error: it starts once all of it is here.
            filesystem, path = open_filesystem(uri)
            with tempfile.TemporaryFile() as buffer:
                yield buffer
                buffer.seek(0)
                with filesystem.open_output_stream(path) as stream:
                    shutil.copyfileobj(buffer, stream, CHUNK_BYTES)
            return
        _make_folder(target.parent)
        temporary = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if new:
                _link(temporary, target)
            else:
                temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        sync(target.parent)


def _link(temporary: Path, target: Path) -> None:
    try:
        target.hardlink_to(temporary)  # unlike a rename, it does not replace what another process finished first
    except OSError:  # that, or a filesystem without links
        if not target.exists():
            temporary.replace(target)


def write_bytes(uri: Location, data: Any, *, mode: int = 0o666, new: bool = False) -> None:
    """Write one small file, ``data`` in a buffer, so that a reader sees the previous content or the new one.

    One that is to be ``new`` stays as it is where it is there; pyarrow cannot ask an object store, which is looked at.

    Raises:
        StorageError: it cannot be written.
    """
    if local_path(uri) is not None:
        with create(uri, mode=mode, new=new) as file:
            file.write(data)
        return
    with errors(uri):
        filesystem, path = open_filesystem(uri)
        if new and filesystem.get_file_info(path).is_file:
            return
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)


def upload(source: Path, uri: Location, *, copy: Callable[[BinaryIO, BinaryIO], Any] = digest) -> Any:
    """Copy a local file to a URI by ``copy`` and return what that returns: by default its size and its SHA-256.

    Raises:
        StorageError: it cannot be written.
    """
    with errors(uri):
        filesystem, path = open_filesystem(uri)
        with source.open("rb") as read, filesystem.open_output_stream(path) as write:
            return copy(read, write)


def download(uri: Location, target: Path) -> None:
    """Copy a file from a URI into a local one, whose folder is created.

    Raises:
        NotFoundError: there is no such file.
        StorageError: it cannot be read.
    """
    with reader(uri) as read:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as write:
            shutil.copyfileobj(read, write, CHUNK_BYTES)


def info(uri: Location) -> Any:
    """Return pyarrow's ``FileInfo`` of a file or folder, whose type says whether there is one.

    Raises:
        StorageError: it cannot be read.
    """
    with errors(uri):
        filesystem, path = open_filesystem(uri)
        return filesystem.get_file_info(path)


def entries(uri: Location, *, recursive: bool = False) -> dict[str, Any]:
    """Return pyarrow's ``FileInfo`` of all that lies in a folder, by its path there, sorted; {} for no folder.

    Raises:
        StorageError: it cannot be read.
    """
    with errors(uri), contextlib.suppress(NotADirectoryError):
        filesystem, base = open_filesystem(uri)
        return entries_of(filesystem, base, recursive=recursive)
    return {}


def listing(uri: Location) -> dict[str, frozenset[str] | None]:
    """Return what lies in a folder: each folder with the paths below it, each file with None; {} for no folder.

    Raises:
        StorageError: it cannot be read.
    """
    files: dict[str, None] = {}
    folders: dict[str, set[str]] = {}
    for path, info in entries(uri, recursive=True).items():
        first, _, rest = path.partition("/")
        if info.is_file and not rest:
            files[first] = None
        else:
            folders.setdefault(first, set()).update([rest] if rest else [])
    return files | {name: frozenset(inside) for name, inside in folders.items()}


def delete(uri: Location, *, first: str | None = None) -> None:
    """Remove a file, or a folder with its file ``first`` before the others; do nothing if it does not exist.

    Raises:
        StorageError: it cannot be removed.
    """
    with errors(uri):
        filesystem, path = open_filesystem(uri)
        if filesystem.get_file_info(path).is_file:
            with contextlib.suppress(FileNotFoundError):  # it may have been renamed since
                filesystem.delete_file(path)
            return
        if first is not None:
            with contextlib.suppress(FileNotFoundError):
                filesystem.delete_file(f"{path}/{first}")
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_dir(path)


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Make a hidden folder in ``parent``, and remove what is left of it and what killed processes left a day ago."""
    parent.mkdir(parents=True, exist_ok=True)
    for path in parent.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(path, ignore_errors=True)
    folder = parent / f".{uuid.uuid4().hex}.tmp"
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish_folder(folder: Path, target: Path) -> None:
    """Flush a folder and its files to the disk and rename it to ``target`` on the same one.

    Raises:
        OSError: it cannot be renamed, such as where ``target`` exists.
    """
    for inner, _, names in os.walk(folder, topdown=False):
        for path in (*(Path(inner, name) for name in names), Path(inner)):
            sync(path)
    folder.rename(target)
    sync(target.parent)


def check_writable(uri: Location) -> None:
    """Write and remove a small file under ``uri``, which is created where it does not exist.

    Raises:
        StorageError: it cannot be written, or its disk has less than 32 MB free.
    """
    probe = join(uri, ".probe")  # of one name: a bucket that may not be deleted from keeps one
    write_bytes(probe, b"raymlops" * 512)
    delete(probe)
    if (folder := local_path(uri)) is not None and (free := _free_bytes(folder)) < _FREE_BYTES:
        raise StorageError(
            f"{os.fspath(uri)!r} has {free / 1e6:.0f} MB free; a run needs at least {_FREE_BYTES / 1e6:.0f}",
            hint="Free some space, or set storage.path to another disk.",
        )


def check_space(uri: Location, *, need_bytes: int) -> None:
    """Refuse before the first byte what cannot fit; for a URI this is about the disk that files are prepared on.

    Raises:
        StorageError: less than ``need_bytes`` is free.
    """
    folder = local_path(uri) or Path(tempfile.gettempdir())
    if (free := _free_bytes(folder)) < need_bytes:
        raise StorageError(
            f"{str(folder)!r} has {free / 1e6:.1f} MB free, {need_bytes / 1e6:.1f} MB are needed",
            hint="Free some space, keep fewer checkpoints, or set storage.path to another disk; TMPDIR where it is the "
            "folder for temporary files.",
        )


def _free_bytes(folder: Path) -> int:
    with errors(folder):
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents, and flush the entry of each that is new."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        sync(new.parent)
