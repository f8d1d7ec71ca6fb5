"""Folders that are whole or absent: written aside, then published, on a disk or on any pyarrow filesystem.

Owns paths, the manifest of SHA-256 digests and the ways a disk can fail. Knows nothing of models.

A local folder (NFS included) is written under a temporary name, flushed to the disk and renamed. An object store
has neither rename nor flush: there the manifest is written last, and a folder without one does not exist.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymlops.config.paths import local_path
from raymlops.errors import NotFoundError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
_FREE_BYTES = 32 * 1024 * 1024


def join(uri: str, *parts: str) -> str:
    """Return the URI or path of something below ``uri``; ``~`` is expanded in a path."""
    base = uri if _is_remote(uri) else str(_local(uri))
    return "/".join([base.rstrip("/") or "/", *parts])


def check_writable(uri: str) -> None:
    """Write and remove a small file under ``uri``, which is created where it does not exist.

    Raises:
        StorageError: it cannot be written, or its disk has less than 32 MB free.
    """
    name = f".probe-{uuid.uuid4().hex}"
    with _storage_errors(uri):
        if _is_remote(uri):
            filesystem, base = _filesystem(uri)
            filesystem.create_dir(base, recursive=True)
            with filesystem.open_output_stream(f"{base}/{name}") as stream:
                stream.write(b"raymlops")
            filesystem.delete_file(f"{base}/{name}")
            return
        folder = _local(uri)
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


def publish(uri: str, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill an empty folder, then make it appear at ``uri`` with its manifest, whole or not at all.

    Raises:
        StorageError: it cannot be written; whatever was at ``uri`` before is as it was.
    """
    with _storage_errors(uri):
        if _is_remote(uri):
            with tempfile.TemporaryDirectory() as name:
                write(Path(name))
                _write_manifest(Path(name))
                _upload(Path(name), uri)
            return
        target = _local(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
        aside.mkdir()
        try:
            write(aside)
            _write_manifest(aside)
            for path in aside.iterdir():
                _sync(path)
            _sync(aside)
            aside.rename(target)
            _sync(target.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def write_bytes(uri: str, data: bytes) -> None:
    """Write one small file so that a reader sees the old content or the new one.

    Raises:
        StorageError: it cannot be written.
    """
    with _storage_errors(uri):
        if _is_remote(uri):
            filesystem, path = _filesystem(uri)
            with filesystem.open_output_stream(path) as stream:
                stream.write(data)
            return
        target = _local(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
        try:
            _write_file(aside, data)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)


@contextlib.contextmanager
def verified(uri: str) -> Iterator[Path]:
    """Yield a local folder with the content of ``uri``, every file checked against the manifest.

    Raises:
        NotFoundError: there is no folder, or no manifest, which is the same.
        StorageError: a file is damaged or missing, or the storage cannot be read.
    """
    with contextlib.ExitStack() as stack:
        if _is_remote(uri):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            with _storage_errors(uri):
                _download(uri, folder)
        else:
            folder = _local(uri)
        if not (folder / MANIFEST).is_file():
            raise NotFoundError(
                f"there is no checkpoint at {uri!r}", hint="A folder without manifest.json is unfinished."
            )
        _verify(folder, uri)
        yield folder


def delete(uri: str) -> None:
    """Remove a folder; nothing happens where there is none."""
    if _is_remote(uri):
        filesystem, path = _filesystem(uri)
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_file(f"{path}/{MANIFEST}")
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_dir(path)
        return
    shutil.rmtree(_local(uri), ignore_errors=True)


def _is_remote(uri: str) -> bool:
    return local_path(uri) is None


def _local(uri: str) -> Path:
    path = local_path(uri)
    assert path is not None
    return path


def _filesystem(uri: str) -> tuple[Any, str]:
    from pyarrow import fs

    filesystem, path = fs.FileSystem.from_uri(uri)
    return filesystem, path.rstrip("/")


def _upload(folder: Path, uri: str) -> None:
    filesystem, base = _filesystem(uri)
    filesystem.create_dir(base, recursive=True)
    names = sorted(path.name for path in folder.iterdir())
    for name in [*(name for name in names if name != MANIFEST), MANIFEST]:
        with filesystem.open_output_stream(f"{base}/{name}") as stream, (folder / name).open("rb") as source:
            shutil.copyfileobj(source, stream, 1 << 22)


def _download(uri: str, folder: Path) -> None:
    from pyarrow import fs

    filesystem, base = _filesystem(uri)
    for info in filesystem.get_file_info(fs.FileSelector(base, allow_not_found=True)):
        if info.is_file:
            with filesystem.open_input_stream(info.path) as source, (folder / info.base_name).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 22)


def _write_manifest(folder: Path) -> None:
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(folder.iterdir())}
    manifest = {"format_version": FORMAT_VERSION, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True), encoding="utf-8")


def _verify(folder: Path, uri: str) -> None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): str(entry["sha256"]) for name, entry in manifest["files"].items()}
        version = int(manifest["format_version"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{uri!r}: {MANIFEST} cannot be read: {error}") from error
    if version > FORMAT_VERSION:
        raise StorageError(f"{uri!r} has format {version}; this raymlops reads up to {FORMAT_VERSION}", hint="Upgrade.")
    for name, expected in files.items():
        path = folder / name
        got = _sha256(path) if Path(name).name == name and path.is_file() else "no such file"
        if got != expected:
            raise StorageError(
                f"{uri!r}: {name} is damaged: its SHA-256 is {got}, the manifest says {expected}",
                hint="Restore the folder from a copy, or train again.",
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_file(path: Path, data: bytes) -> None:
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _storage_errors(uri: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            f"{uri!r} cannot be used: {error}",
            hint="Set storage.path to a folder or URI that this user may write and that has space.",
        ) from error
