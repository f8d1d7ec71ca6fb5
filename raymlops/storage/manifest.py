"""Folders that are whole or absent: their manifest of SHA-256 digests is written last.

Owns the manifest and what it means: a folder without one does not exist, a folder with one must match it. Knows nothing
of models. Several processes may fill one folder; one of them seals it. Where the filesystem can, files are flushed to
the disk before the manifest that names them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from typing import TYPE_CHECKING

from raymlops.errors import NotFoundError, StorageError
from raymlops.storage import filesystem
from raymlops.storage.scratch import scratch, scratch_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

MANIFEST = "manifest.json"
DAMAGED = "damaged"
"""How a folder that was set aside is named, or on an object store the file that marks it."""
FORMAT_VERSION = 2

Digests = dict[str, dict[str, int | str]]
"""File name to ``bytes`` and ``sha256``."""


class Draft:
    """A folder in the making, of a name that nobody used before. Each rank fills its part, then one seals all."""

    def __init__(self, uri: str, *, rank: int = 0) -> None:
        self.uri = uri
        self.folder = scratch_path() if filesystem.is_remote(uri) else filesystem.local(uri) / f".part-{rank}"
        """Where this rank's files are prepared."""
        self.digests: Digests = {}
        """The files that this rank put there."""

    @contextlib.contextmanager
    def part(self) -> Iterator[Path]:
        """Yield ``folder``; the files left in it become part of the whole.

        Raises:
            StorageError: they cannot be written.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(filesystem.errors(self.uri))
            if filesystem.is_remote(self.uri):
                stack.enter_context(scratch(self.folder))
                yield self.folder
                for path in sorted(self.folder.iterdir()):
                    size, digest = filesystem.put(path, filesystem.join(self.uri, path.name))
                    self.digests[path.name] = {"bytes": size, "sha256": digest}
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            yield self.folder
            for path in sorted(self.folder.iterdir()):
                self.digests[path.name] = _synced(path)
                path.rename(self.folder.parent / path.name)

    def seal(self, digests: Digests) -> None:
        """Make the folder exist, with these files of all ranks.

        Raises:
            StorageError: the manifest cannot be written.
        """
        manifest = {"format_version": FORMAT_VERSION, "files": digests}
        if not filesystem.is_remote(self.uri):
            with filesystem.errors(self.uri):
                filesystem.sync(filesystem.local(self.uri))
        filesystem.write_bytes(
            filesystem.join(self.uri, MANIFEST), json.dumps(manifest, indent=2, sort_keys=True).encode()
        )
        if not filesystem.is_remote(self.uri):
            with filesystem.errors(self.uri):
                filesystem.sync(filesystem.local(self.uri).parent)

    def discard(self) -> None:
        """Remove what was written so far; what cannot be removed has no manifest and does not exist."""
        with contextlib.suppress(StorageError):
            delete(self.uri)


def delete(uri: str) -> None:
    """Remove a folder, its manifest first, so that a part of it is never taken for the whole.

    Raises:
        StorageError: it cannot be removed.
    """
    filesystem.delete(uri, first=MANIFEST)


def damage(
    uri: str, *, needs: Sequence[str] = (), check: Callable[[int, str], bool] = lambda _index, _name: True
) -> str | None:
    """Return what is wrong with a folder, or None if every file matches the manifest and ``needs`` are among them.

    ``check`` may leave files, by index and name, to others.

    Raises:
        NotFoundError: there is no folder, or no manifest, which is the same.
        StorageError: the storage cannot be read, or a newer raymlops wrote the folder: nothing is known of its files.
    """
    try:
        data = filesystem.read_bytes(filesystem.join(uri, MANIFEST))
    except NotFoundError as error:
        raise NotFoundError(
            f"there is no checkpoint at {uri!r}", hint=f"A folder without {MANIFEST} is unfinished."
        ) from error
    try:
        manifest = json.loads(data)
        version = int(manifest["format_version"])
        files = {str(name): (entry["bytes"], str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read: {type(error).__name__}: {error}"
    if version > FORMAT_VERSION:
        raise StorageError(f"{uri!r} has format {version}; this raymlops reads up to {FORMAT_VERSION}", hint="Upgrade.")
    missing = [name for name in needs if name not in files]
    if missing:
        return f"{', '.join(missing)} is not in {MANIFEST}"
    checked = [item for index, item in enumerate(sorted(files.items())) if check(index, item[0])]
    return next((problem for name, entry in checked if (problem := _file_damage(uri, name, expected=entry))), None)


@contextlib.contextmanager
def verified(uri: str, *, needs: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a local folder with the content of ``uri``, every file checked against the manifest.

    Raises:
        NotFoundError: there is no folder, or no manifest, which is the same.
        StorageError: a file is damaged or missing, or the storage cannot be read.
    """
    with contextlib.ExitStack() as stack:
        if filesystem.is_remote(uri):
            folder = stack.enter_context(scratch())
            for name in filesystem.listing(uri):
                filesystem.fetch(filesystem.join(uri, name), folder / name)
        else:
            folder = filesystem.local(uri)
        try:
            problem = damage(str(folder), needs=needs)
        except NotFoundError as error:
            raise NotFoundError(error.message.replace(str(folder), uri), hint=error.hint) from error
        if problem is not None:
            raise StorageError(f"{uri!r}: {problem}", hint="Restore the folder from a copy, or train again.")
        yield folder


def names(folder: Path) -> frozenset[str]:
    """Return the files that the manifest of a verified folder names: whatever else lies there was not checked."""
    return frozenset(json.loads((folder / MANIFEST).read_bytes())["files"])


def set_aside(uri: str, name: str, *, reason: str) -> str:
    """Take a damaged folder out of use, keep its files, and return what it is called now.

    Raises:
        StorageError: it can be neither renamed nor marked.
    """
    if filesystem.is_remote(uri):
        filesystem.write_bytes(filesystem.join(uri, name, DAMAGED), reason.encode())
        return name
    folder = filesystem.local(uri)
    new = f"{DAMAGED}-{name}"
    with filesystem.errors(uri):
        (folder / name).rename(folder / new)
        filesystem.sync(folder)
    return new


def is_set_aside(name: str, files: frozenset[str]) -> bool:
    """Return whether a folder was set aside."""
    return name.startswith(f"{DAMAGED}-") or DAMAGED in files


def merged(parts: Sequence[Mapping[str, dict[str, int | str]]]) -> Digests:
    """Return the files of all ranks as one."""
    return {name: entry for part in parts for name, entry in part.items()}


def _file_damage(uri: str, name: str, *, expected: tuple[object, str]) -> str | None:
    if not name or "/" in name or name in {".", ".."}:
        return f"{MANIFEST} names {name!r}, which is no file of this folder"
    path = filesystem.join(uri, name)
    try:
        size = filesystem.size_bytes(path)
        if size != expected[0]:
            return f"{name} is damaged: it has {size} bytes, the manifest says {expected[0]}"
        got = filesystem.sha256(path)
    except NotFoundError:
        return f"{name} is damaged: no such file"
    except StorageError as error:
        if filesystem.is_remote(path) or getattr(error.__cause__, "errno", None) != errno.EIO:
            raise
        return f"{name} is damaged: the disk cannot read it: {error.__cause__}"
    if got != expected[1]:
        return f"{name} is damaged: its SHA-256 is {got}, the manifest says {expected[1]}"
    return None


def _synced(path: Path) -> dict[str, int | str]:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"bytes": os.fstat(stream.fileno()).st_size, "sha256": digest}
