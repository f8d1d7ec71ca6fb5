"""Folders that are complete or absent: their manifest of SHA-256 digests is written last.

Owns the stored formats of a manifest, and what one means: a folder without one does not exist, a folder with one
must match it. Knows nothing of models. Several processes may fill one folder; one of them seals it. Where the
filesystem can, files are flushed to the disk before the manifest that names them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from raymlops.config.paths import local_path
from raymlops.errors import DamagedError, NotFoundError, StorageError
from raymlops.storage import filesystem
from raymlops.storage.scratch import scratch, scratch_path

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

MANIFEST = "manifest.json"
BLOCK_BYTES = 8 << 20
"""A file that is read by range has a digest of each block of this size."""
DAMAGED = "damaged"
"""How a folder that was set aside is named, or on an object store the file that marks it."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What a manifest says of one file."""

    sha256: str
    size: int
    blocks: tuple[str, ...] = ()
    """The SHA-256 of each block, where the file is read by range; ``sha256`` is then that of these, one after another:
    no byte is hashed twice."""

    @classmethod
    def of_blocks(cls, blocks: Sequence[str], size: int) -> Self:
        """Return the entry of a file with these blocks."""
        return cls(hashlib.sha256("".join(blocks).encode()).hexdigest(), size, tuple(blocks))


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
        entries = {
            name: {"sha256": entry.sha256, self.size_key: entry.size}
            | ({"blocks": entry.blocks} if entry.blocks else {})
            for name, entry in files.items()
        }
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
            return version, {str(name): self._entry(str(name), entry) for name, entry in listed}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error

    def _entry(self, name: str, given: Mapping[str, Any]) -> FileEntry:
        entry = FileEntry(str(given["sha256"]), int(given[self.size_key]), tuple(map(str, given.get("blocks", ()))))
        if entry.blocks:
            whole = FileEntry.of_blocks(entry.blocks, entry.size)
            if whole != entry or len(entry.blocks) != -(-entry.size // BLOCK_BYTES):
                msg = f"the digests of {name} contradict each other"
                raise ValueError(msg)
        return entry


CHECKPOINT = Format(version=2, size_key="bytes", indent=2)
IN_BLOCKS = Format(version=3, size_key="bytes", indent=2)
"""Of a checkpoint with files that are read by range."""
BUNDLE = Format(version=1, size_key="size", indent=1, end="\n")
BACKUP = Format(version=1, size_key="bytes", indent=2)


class Draft:
    """A folder that is being written, under a new name. Each rank fills its part, then one rank seals it."""

    def __init__(self, uri: str, *, rank: int = 0, by_range: bool = False) -> None:
        """Begin ``uri``; large files of it can be read ``by_range``."""
        self.uri = uri
        self._by_range = by_range
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
                    self.digests[path.name] = upload(
                        path, filesystem.join(self.uri, path.name), by_range=self._by_range
                    )
                else:
                    filesystem.sync(path)
                    self.digests[path.name] = entry_of(path, by_range=self._by_range)
                    path.rename(self.folder.parent / path.name)

    def seal(self, digests: Digests) -> None:
        """Write the manifest of all ranks' files, which makes the folder exist.

        Raises:
            StorageError: the manifest cannot be written.
        """
        form = IN_BLOCKS if any(entry.blocks for entry in digests.values()) else CHECKPOINT
        manifest, data = filesystem.join(self.uri, MANIFEST), form.encode(digests)
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


def entry_of(path: Path, *, by_range: bool = False) -> FileEntry:
    """Return what a manifest says of a local file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return _hashed(stream, in_blocks=by_range and path.stat().st_size > BLOCK_BYTES)


def upload(path: Path, uri: str, *, by_range: bool = False) -> FileEntry:
    """Copy a local file to a URI, and return what a manifest says of it.

    Raises:
        StorageError: it cannot be written.
    """
    in_blocks = by_range and path.stat().st_size > BLOCK_BYTES
    entry: FileEntry = filesystem.upload(path, uri, copy=lambda read, write: _hashed(read, write, in_blocks=in_blocks))
    return entry


def mismatch(
    opened: AbstractContextManager[BinaryIO], entry: FileEntry, *sinks: filesystem.Sink
) -> tuple[str, str] | None:
    """Return what was expected of a file and what was found; None where it is what its manifest says.

    What is read goes to ``sinks`` as well.

    Raises:
        StorageError: the storage cannot be read.
    """
    try:
        with opened as stream:
            found = _hashed(stream, *sinks, in_blocks=bool(entry.blocks))
    except NotFoundError:
        return f"a file of {entry.size} bytes", "nothing"
    except StorageError as error:
        if getattr(error.__cause__, "errno", None) != errno.EIO:
            raise
        return "a file that the disk can read", str(error.__cause__)
    if found.size != entry.size:
        return f"{entry.size} bytes", f"{found.size} bytes"
    return None if found.sha256 == entry.sha256 else (f"SHA-256 {entry.sha256}", found.sha256)


def _hashed(stream: BinaryIO, *sinks: filesystem.Sink, in_blocks: bool) -> FileEntry:
    if not in_blocks:
        size, sha256 = filesystem.digest(stream, *sinks)
        return FileEntry(sha256, size)
    blocks: list[str] = []
    total = 0
    while True:
        size, sha256 = filesystem.digest(stream, *sinks, most_bytes=BLOCK_BYTES)
        if not size:
            return FileEntry.of_blocks(blocks, total)
        blocks.append(sha256)
        total += size


def delete(uri: str) -> None:
    """Remove a folder, its manifest first, so that a partial one is never mistaken for complete.

    Raises:
        StorageError: it cannot be removed.
    """
    filesystem.delete(uri, first=MANIFEST)


def contents(uri: str) -> Digests:
    """Return the files that the manifest of a checkpoint names.

    Raises:
        NotFoundError: there is no folder, or no manifest, which is the same.
        DamagedError: the manifest is damaged.
        StorageError: the storage cannot be read, or a newer raymlops wrote the folder: its files are unknown.
    """
    try:
        data = filesystem.read_bytes(filesystem.join(uri, MANIFEST))
    except NotFoundError as error:
        raise NotFoundError(
            f"there is no checkpoint at {uri!r}", hint=f"A folder without {MANIFEST} is unfinished."
        ) from error
    try:
        version, files = IN_BLOCKS.decode(data)
    except ValueError as error:
        raise unusable(uri, f"{MANIFEST} cannot be read: {error}") from error
    if version > IN_BLOCKS.version:
        raise newer(uri, version, reads=IN_BLOCKS.version)
    for name in files:
        if not name or "/" in name or name in {".", ".."}:
            raise unusable(uri, f"{MANIFEST} names {name!r}, which is not a file of this folder")
    return files


def damage(
    uri: str,
    *,
    needs: Sequence[str] = (),
    check: Callable[[str], bool] = lambda _name: True,
    on_progress: Callable[[], object] = lambda: None,
) -> str | None:
    """Return what is wrong with a checkpoint, or None if its files match the manifest and ``needs`` are among them.

    ``check`` selects the files whose digests are verified; of the others, the sizes are compared.

    Raises:
        NotFoundError: there is no folder, or no manifest, which is the same.
        StorageError: the storage cannot be read, or a newer raymlops wrote the folder: its files are unknown.
    """
    try:
        files = contents(uri)
    except DamagedError as error:
        return error.problem
    missing = [name for name in needs if name not in files]
    if missing:
        return f"{', '.join(missing)} is not in {MANIFEST}"
    there = {} if all(map(check, files)) else filesystem.entries(uri)
    for name, entry in sorted(files.items()):
        if check(name):
            problem = mismatch(filesystem.reader(filesystem.join(uri, name)), entry, Ticks(on_progress))
        else:
            size = there[name].size if name in there else None
            found = "nothing" if size is None else f"{size} bytes"
            problem = None if size == entry.size else (f"a file of {entry.size} bytes", found)
        if problem is not None:
            return damaged(name, *problem)
    return None


def damaged(name: str, expected: str, got: str) -> str:
    """Say of a file what ``mismatch`` found."""
    return f"{name} is damaged: expected {expected}, got {got}"


class Ticks:
    """A sink that calls ``on_progress`` for each piece that is read."""

    def __init__(self, on_progress: Callable[[], object]) -> None:
        self._on_progress = on_progress

    def write(self, _piece: bytes, /) -> None:
        """Take a piece."""
        self._on_progress()


def newer(what: str, version: int, *, reads: int = CHECKPOINT.version) -> StorageError:
    """Return the error for a checkpoint's file that a newer release wrote."""
    return StorageError(f"{what!r} has format {version}; this raymlops reads up to {reads}", hint="Upgrade raymlops.")


@contextlib.contextmanager
def verified(uri: str, *, only: Sequence[str] = (), on_progress: Callable[[], object] = lambda: None) -> Iterator[Path]:
    """Yield a local folder with the content of a checkpoint, checked against the manifest: all files, or some ``only``.

    A remote one is read once, and checked meanwhile. Others than those asked for are not read.

    Raises:
        NotFoundError: there is no folder, or no manifest, which is the same.
        DamagedError: a file is damaged or missing.
        StorageError: the storage cannot be read.
    """
    with contextlib.ExitStack() as stack:
        if (folder := local_path(uri)) is not None:
            problem = damage(uri, needs=only, check=lambda name: not only or name in only, on_progress=on_progress)
            if problem is not None:
                raise unusable(uri, problem)
            yield folder
            return
        folder, files = stack.enter_context(scratch()), contents(uri)
        for name in only or files:
            if name not in files:
                raise unusable(uri, f"{name} is not in {MANIFEST}")
            with (folder / name).open("wb") as target:
                opened = filesystem.reader(filesystem.join(uri, name))
                found = mismatch(opened, files[name], target, Ticks(on_progress))
            if found is not None:
                raise unusable(uri, damaged(name, *found))
        yield folder


def unusable(uri: str, problem: str) -> DamagedError:
    """Return the error for a damaged checkpoint."""
    hint = "Restore the folder from a copy, or train again."
    return DamagedError(f"{uri!r}: {problem}", hint=hint, uri=uri, problem=problem)


def set_aside(uri: str, *, reason: str) -> str:
    """Rename or mark a damaged folder, keep its files, and return its new name.

    Raises:
        StorageError: it can be neither renamed nor marked.
    """
    if (folder := local_path(uri)) is None:
        filesystem.write_bytes(filesystem.join(uri, DAMAGED), reason.encode())
        return ""
    new = folder.with_name(f"{DAMAGED}-{folder.name}")
    with filesystem.errors(uri):
        folder.rename(new)
        filesystem.sync(folder.parent)
    return new.name


def is_set_aside(name: str, files: Collection[str]) -> bool:
    """Return whether a folder was set aside."""
    return name.startswith(f"{DAMAGED}-") or DAMAGED in files
