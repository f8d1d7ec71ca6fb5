"""Files and folders on a disk or on any pyarrow filesystem, under one set of names.

Owns paths, URIs and the ways a disk can fail. Knows nothing of manifests or models.

A local file (NFS included) is flushed to the disk and renamed into place. An object store has neither flush nor rename,
but a file appears there whole or not at all.

Where a bundle is: a local folder, or a path on any pyarrow filesystem named by its URI.

Owns the reading of that text. Knows nothing of what a bundle holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from raymlops.config.credentials import redact
from raymlops.config.paths import local_path
from raymlops.errors import NotFoundError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator


FOLDER = "bundles"


@dataclass(frozen=True, slots=True)
class Place:
    """A folder. ``local`` is set for a local one, else ``filesystem`` and ``path``."""

    uri: str
    local: Path | None = None
    filesystem: Any = None
    path: str = ""


Location = str | os.PathLike[str] | Place


def locate(uri: Location) -> Place:
    """Read a path, a ``file://`` URI or the URI of a pyarrow filesystem (``s3://``, ``gs://``).

    Raises:
        StorageError: pyarrow knows no such filesystem, or refuses the URI.
    """
    if isinstance(uri, Place):
        return uri
    text = os.fspath(uri)
    path = local_path(text)
    if path is not None:
        return Place(uri=str(path), local=path)
    import pyarrow as pa
    from pyarrow.fs import FileSystem

    try:
        filesystem, path_text = FileSystem.from_uri(text)
    except (pa.ArrowInvalid, OSError) as error:
        raise StorageError(
            f"{text!r} is no storage that can be opened: {error}",
            hint="Write a folder, or the URI of a filesystem that pyarrow knows: s3://, gs://, abfs://, hdfs://.",
        ) from error
    return Place(uri=text.rstrip("/"), filesystem=filesystem, path=path_text.rstrip("/"))


def root_of(bundle_uri: str) -> str:
    """Return the storage that a bundle was written under: ``write_bundle`` puts it into ``<root>/bundles/<digest>``."""
    path, mark, options = bundle_uri.partition("?")
    return path.rpartition(f"/{FOLDER}/")[0] + mark + options


def child(parent: Location, *names: str) -> Place:
    """Return a place inside another; a URI's options after ``?`` stay at its end."""
    place = locate(parent)
    if place.local is not None:
        inner = place.local.joinpath(*names)
        return Place(uri=str(inner), local=inner)
    base, question, options = place.uri.partition("?")
    uri = "/".join([base.rstrip("/"), *names]) + question + options
    return Place(uri=uri, filesystem=place.filesystem, path="/".join([place.path, *names]))


_FREE_BYTES = 32 * 1024 * 1024
_CHUNK_BYTES = 4 * 1024 * 1024


def join(uri: str, *parts: str) -> str:
    """Return the URI or path of something below ``uri``; ``~`` is expanded in a path, a URI keeps its query."""
    if not is_remote(uri):
        return "/".join([str(local(uri)).rstrip("/") or "/", *parts])
    base, mark, query = uri.partition("?")
    return "/".join([base.rstrip("/"), *parts]) + mark + query


def is_remote(uri: str) -> bool:
    """Return whether ``uri`` is on a filesystem that pyarrow opens, rather than a path."""
    return local_path(uri) is None


def local(uri: str) -> Path:
    """Return the path that a local ``uri`` names."""
    path = local_path(uri)
    assert path is not None
    return path


def check_writable(uri: str) -> None:
    """Write and remove a small file under ``uri``, which is created where it does not exist.

    Raises:
        StorageError: it cannot be written, or its disk has less than 32 MB free.
    """
    name = f".probe-{uuid.uuid4().hex}"
    with errors(uri):
        if is_remote(uri):
            filesystem, base = _filesystem(uri)
            filesystem.create_dir(base, recursive=True)
            with filesystem.open_output_stream(f"{base}/{name}") as stream:
                stream.write(b"raymlops")
            filesystem.delete_file(f"{base}/{name}")
            return
        folder = local(uri)
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / name
        try:
            _write_file(probe, b"raymlops" * 512)
        finally:
            probe.unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free
    if free < _FREE_BYTES:
        raise StorageError(
            f"{uri!r} has {free / 1e6:.0f} MB free; a run needs at least {_FREE_BYTES / 1e6:.0f}",
            hint="Free some space, or set storage.path to another disk.",
        )


def check_space(uri: str, *, need_bytes: int) -> None:
    """Refuse before the first byte what cannot fit; for a URI this is about the disk that files are prepared on.

    Raises:
        StorageError: less than ``need_bytes`` is free.
    """
    folder = Path(tempfile.gettempdir()) if is_remote(uri) else local(uri)
    with errors(uri):
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise StorageError(
            f"{str(folder)!r} has {free / 1e6:.1f} MB free, {need_bytes / 1e6:.1f} MB are needed",
            hint="Free some space, keep fewer checkpoints, or set storage.path to another disk.",
        )


def write_bytes(uri: str, data: bytes) -> None:
    """Write one small file so that a reader sees the old content or the new one.

    Raises:
        StorageError: it cannot be written.
    """
    with errors(uri):
        if is_remote(uri):
            filesystem, path = _filesystem(uri)
            with filesystem.open_output_stream(path) as stream:
                stream.write(data)
            return
        target = local(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
        try:
            _write_file(aside, data)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
        sync(target.parent)


def read_bytes(uri: str) -> bytes:
    """Return a file's content.

    Raises:
        NotFoundError: there is no such file.
        StorageError: it cannot be read.
    """
    with _opened(uri) as stream:
        return bytes(stream.read())


def size_bytes(uri: str) -> int:
    """Return a file's size.

    Raises:
        NotFoundError: there is no such file.
        StorageError: it cannot be read.
    """
    with _found(uri):
        if not is_remote(uri):
            return local(uri).stat().st_size
        filesystem, path = _filesystem(uri)
        info = filesystem.get_file_info(path)
        if not info.is_file:
            raise FileNotFoundError(path)
        return int(info.size)


def listing(uri: str) -> dict[str, frozenset[str] | None]:
    """Return what lies in a folder: each folder with the names of its files, each file with None; {} for no folder.

    Raises:
        StorageError: it cannot be read.
    """
    with errors(uri):
        if is_remote(uri):
            return _remote_listing(uri)
        folder = local(uri)
        if not folder.is_dir():
            return {}
        found: dict[str, frozenset[str] | None] = {}
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # it was removed since
                found[path.name] = frozenset(item.name for item in path.iterdir()) if path.is_dir() else None
        return found


def put(source: Path, uri: str) -> tuple[int, str]:
    """Copy a local file to a URI and return its size in bytes and its SHA-256, taken on the way.

    Raises:
        StorageError: it cannot be written.
    """
    digest, size = hashlib.sha256(), 0
    with errors(uri):
        filesystem, path = _filesystem(uri)
        with source.open("rb") as read, filesystem.open_output_stream(path) as write:
            while chunk := read.read(_CHUNK_BYTES):
                digest.update(chunk)
                write.write(chunk)
                size += len(chunk)
    return size, digest.hexdigest()


def fetch(uri: str, target: Path) -> None:
    """Copy a file from a URI; nothing happens where there is none.

    Raises:
        StorageError: it cannot be read.
    """
    with errors(uri), contextlib.suppress(FileNotFoundError):
        filesystem, path = _filesystem(uri)
        with filesystem.open_input_stream(path) as read, target.open("wb") as write:
            shutil.copyfileobj(read, write, _CHUNK_BYTES)


def sha256(uri: str) -> str:
    """Return a file's SHA-256.

    Raises:
        NotFoundError: there is no such file.
        StorageError: it cannot be read.
    """
    digest = hashlib.sha256()
    with _opened(uri) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def delete(uri: str, *, first: str | None = None) -> None:
    """Remove a file or a folder with all that it holds, its file ``first`` before the others; none is fine too.

    Raises:
        StorageError: it cannot be removed.
    """
    with errors(uri):
        if is_remote(uri):
            filesystem, path = _filesystem(uri)
            if filesystem.get_file_info(path).is_file:
                filesystem.delete_file(path)
                return
            with contextlib.suppress(FileNotFoundError):
                if first is not None:
                    filesystem.delete_file(f"{path}/{first}")
            with contextlib.suppress(FileNotFoundError):
                filesystem.delete_dir(path)
            return
        target = local(uri)
        with contextlib.suppress(FileNotFoundError):
            if not target.is_dir():
                target.unlink()
                return
            if first is not None:
                (target / first).unlink(missing_ok=True)
            shutil.rmtree(target)


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def errors(uri: str) -> Iterator[None]:
    """Turn what a disk or pyarrow raises into a StorageError that names ``uri``."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            redact(f"{uri!r} cannot be used: {error}"),
            hint="Set storage.path to a folder or URI that this user may write and that has space.",
        ) from error


@contextlib.contextmanager
def _found(uri: str) -> Iterator[None]:
    with errors(uri):
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise NotFoundError(f"there is no file {uri!r}") from error


@contextlib.contextmanager
def _opened(uri: str) -> Iterator[Any]:
    """Open a file to be read."""
    with _found(uri):
        if not is_remote(uri):
            with local(uri).open("rb") as stream:
                yield stream
            return
        filesystem, path = _filesystem(uri)
        with filesystem.open_input_stream(path) as stream:
            yield stream


def _filesystem(uri: str) -> tuple[Any, str]:
    parts = urlsplit(uri)
    filesystem, root = _client(urlunsplit((parts.scheme, parts.netloc, "/", parts.query, "")))
    path = f"{root.rstrip('/')}{unquote(parts.path)}".rstrip("/")
    return filesystem, path if root else path.lstrip("/")


@lru_cache(maxsize=16)
def _client(root: str) -> tuple[Any, str]:
    """Return the filesystem of a host or bucket. Kept: making one costs 30 ms and requests, more than a small file."""
    from pyarrow import fs

    filesystem, path = fs.FileSystem.from_uri(root)
    return filesystem, str(path)


def _remote_listing(uri: str) -> dict[str, frozenset[str] | None]:
    from pyarrow import fs

    filesystem, base = _filesystem(uri)
    folders: dict[str, set[str]] = {}
    found: dict[str, frozenset[str] | None] = {}
    for info in filesystem.get_file_info(fs.FileSelector(base, allow_not_found=True, recursive=True)):
        first, _, rest = info.path.removeprefix(f"{base}/").partition("/")
        if rest:
            folders.setdefault(first, set()).add(rest)
        elif info.is_file:
            found[first] = None
        else:
            folders.setdefault(first, set())
    return found | {name: frozenset(files) for name, files in folders.items()}


def _write_file(path: Path, data: bytes) -> None:
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
