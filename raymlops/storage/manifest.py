"""Folders that are complete or absent: their manifest of SHA-256 digests is written last.

Owns the two stored formats of a manifest, and what one means: a folder without one does not exist, a folder with one
must match it. Knows nothing of models. Several processes may fill one folder; one of them seals it. Where the
filesystem can, files are flushed to the disk before the manifest that names them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from raymlops.config.paths import local_path
from raymlops.errors import NotFoundError, StorageError
from raymlops.storage import filesystem
from raymlops.storage.scratch import scratch, scratch_path

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

MANIFEST = "manifest.json"
DAMAGED = "damaged"
"""How a folder that was set aside is named, or on an object store the file that marks it."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What a manifest says of one file."""

    sha256: str
    size: int


Digests = dict[str, FileEntry]
"""Files by their path in the folder."""


@dataclass(frozen=True, slots=True)
class Format:
    """How a manifest is written as JSON. Earlier releases wrote these bytes, and bundles are named by their digest."""

    version: int
    size_key: str
    indent: int
    end: str = ""

    def encode(self, files: Mapping[str, FileEntry]) -> bytes:
        """Return the one byte sequence for these files."""
        entries = {name: {"sha256": entry.sha256, self.size_key: entry.size} for name, entry in files.items()}
        data = {"format_version": self.version, "files": entries}
        return (json.dumps(data, indent=self.indent, sort_keys=True) + self.end).encode()

    def decode(self, data: bytes) -> tuple[int, Digests]:
        """Return a manifest's version and its files, none where the version is newer than this format.

        Raises:
            ValueError: it is damaged.
        """
        try:
            content = json.loads(data)
            version = int(content["format_version"])
            listed = content["files"].items() if version <= self.version else ()
            return version, {str(name): FileEntry(str(e["sha256"]), int(e[self.size_key])) for name, e in listed}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error


CHECKPOINT = Format(version=2, size_key="bytes", indent=2)
BUNDLE = Format(version=1, size_key="size", indent=1, end="\n")


class Draft:
    """A folder that is being written, under a new name. Each rank fills its part, then one rank seals it."""

    def __init__(self, uri: str, *, rank: int = 0) -> None:
        self.uri = uri
        self._local = local_path(uri)
        self.folder = scratch_path() if self._local is None else self._local / f".part-{rank}"
        """Where this rank's files are prepared."""
        self.on_file: Callable[[Path], object] = lambda _path: None
        """Called before each file that is uploaded, or flushed to the disk."""
        self.digests: Digests = {}
        """The files that this rank wrote."""

    @contextlib.contextmanager
    def part(self) -> Iterator[Path]:
        """Yield ``folder``; the files left in it become part of the result.

        Raises:
            StorageError: they cannot be written.
        """
        remote = self._local is None
        with contextlib.ExitStack() as stack:
            stack.enter_context(filesystem.errors(self.uri))
            if remote:
                stack.enter_context(scratch(self.folder))
            else:
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            yield self.folder
            for path in sorted(self.folder.iterdir()):
                self.on_file(path)
                if remote:
                    self.digests[path.name] = upload(path, filesystem.join(self.uri, path.name))
                else:
                    filesystem.sync(path)
                    self.digests[path.name] = entry_of(path)
                    path.rename(self.folder.parent / path.name)

    def seal(self, digests: Digests) -> None:
        """Write the manifest of all ranks' files, which makes the folder exist.

        Raises:
            StorageError: the manifest cannot be written.
        """
        manifest, data = filesystem.join(self.uri, MANIFEST), CHECKPOINT.encode(digests)
        if self._local is None:
            filesystem.write_bytes(manifest, data)
            return
        with filesystem.errors(self.uri):
            filesystem.sync(self._local)
            filesystem.write_bytes(manifest, data)
            filesystem.sync(self._local.parent)

    def discard(self) -> None:
        """Remove what was written; what cannot be removed has no manifest and does not exist."""
        with contextlib.suppress(StorageError):
            delete(self.uri)


def entry_of(path: Path) -> FileEntry:
    """Return what a manifest says of a local file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        size, sha256 = filesystem.digest(stream)
    return FileEntry(sha256, size)


def upload(path: Path, uri: str) -> FileEntry:
    """Copy a local file to a URI, and return what a manifest says of it.

    Raises:
        StorageError: it cannot be written.
    """
    size, sha256 = filesystem.upload(path, uri)
    return FileEntry(sha256, size)


def mismatch(opened: AbstractContextManager[BinaryIO], entry: FileEntry) -> tuple[str, str] | None:
    """Return what was expected of a file and what was found; None where it is what its manifest says.

    Raises:
        StorageError: the storage cannot be read.
    """
    try:
        with opened as stream:
            size, sha256 = filesystem.digest(stream)
    except NotFoundError:
        return f"a file of {entry.size} bytes", "nothing"
    except StorageError as error:
        if getattr(error.__cause__, "errno", None) != errno.EIO:
            raise
        return "a file that the disk can read", str(error.__cause__)
    if size != entry.size:
        return f"{entry.size} bytes", f"{size} bytes"
    return None if sha256 == entry.sha256 else (f"SHA-256 {entry.sha256}", sha256)


def delete(uri: str) -> None:
    """Remove a folder, its manifest first, so that a partial one is never mistaken for complete.

    Raises:
        StorageError: it cannot be removed.
    """
    filesystem.delete(uri, first=MANIFEST)


def damage(
    uri: str, *, needs: Sequence[str] = (), check: Callable[[int, str], bool] = lambda _index, _name: True
) -> str | None:
    """Return what is wrong with a checkpoint, or None if its files match the manifest and ``needs`` are among them.

    ``check`` selects the files to verify, by index and name; other ranks verify the rest.

    Raises:
        NotFoundError: there is no folder, or no manifest, which is the same.
        StorageError: the storage cannot be read, or a newer raymlops wrote the folder: its files are unknown.
    """
    try:
        data = filesystem.read_bytes(filesystem.join(uri, MANIFEST))
    except NotFoundError as error:
        raise NotFoundError(
            f"there is no checkpoint at {uri!r}", hint=f"A folder without {MANIFEST} is unfinished."
        ) from error
    try:
        version, files = CHECKPOINT.decode(data)
    except ValueError as error:
        return f"{MANIFEST} cannot be read: {error}"
    if version > CHECKPOINT.version:
        raise newer(uri, version)
    missing = [name for name in needs if name not in files]
    if missing:
        return f"{', '.join(missing)} is not in {MANIFEST}"
    checked = [item for index, item in enumerate(sorted(files.items())) if check(index, item[0])]
    return next((problem for name, entry in checked if (problem := _damage(uri, name, entry))), None)


def newer(what: str, version: int) -> StorageError:
    """Return the error for a checkpoint's file that a newer release wrote."""
    return StorageError(
        f"{what!r} has format {version}; this raymlops reads up to {CHECKPOINT.version}", hint="Upgrade raymlops."
    )


@contextlib.contextmanager
def verified(uri: str, *, needs: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a local folder with the content of a checkpoint, every file checked against the manifest.

    Raises:
        NotFoundError: there is no folder, or no manifest, which is the same.
        StorageError: a file is damaged or missing, or the storage cannot be read.
    """
    with contextlib.ExitStack() as stack:
        if (folder := local_path(uri)) is None:
            folder = stack.enter_context(scratch())
            for name in filesystem.entries(uri):
                with contextlib.suppress(NotFoundError):  # a folder, or a file that was removed since
                    filesystem.download(filesystem.join(uri, name), folder / name)
        try:
            problem = damage(str(folder), needs=needs)
        except NotFoundError as error:
            raise NotFoundError(error.message.replace(str(folder), uri), hint=error.hint) from error
        if problem is not None:
            raise unusable(uri, problem)
        yield folder


def unusable(uri: str, problem: str) -> StorageError:
    """Return the error for a damaged checkpoint."""
    return StorageError(f"{uri!r}: {problem}", hint="Restore the folder from a copy, or train again.")


def names(folder: Path) -> frozenset[str]:
    """Return the files that the manifest of a verified folder names; other files there were not verified."""
    return frozenset(CHECKPOINT.decode((folder / MANIFEST).read_bytes())[1])


def set_aside(uri: str, name: str, *, reason: str) -> str:
    """Rename or mark a damaged folder, keep its files, and return its new name.

    Raises:
        StorageError: it can be neither renamed nor marked.
    """
    if (folder := local_path(uri)) is None:
        filesystem.write_bytes(filesystem.join(uri, name, DAMAGED), reason.encode())
        return name
    new = f"{DAMAGED}-{name}"
    with filesystem.errors(uri):
        (folder / name).rename(folder / new)
        filesystem.sync(folder)
    return new


def is_set_aside(name: str, files: Collection[str]) -> bool:
    """Return whether a folder was set aside."""
    return name.startswith(f"{DAMAGED}-") or DAMAGED in files


def _damage(uri: str, name: str, entry: FileEntry) -> str | None:
    if not name or "/" in name or name in {".", ".."}:
        return f"{MANIFEST} names {name!r}, which is not a file of this folder"
    problem = mismatch(filesystem.reader(filesystem.join(uri, name)), entry)
    return None if problem is None else f"{name} is damaged: expected {problem[0]}, got {problem[1]}"
