"""The place that backups are in: ``backups/ID/``, one folder each, beside the ``bundles/`` that all of them share.

A backup is there once its manifest is, which is written last. Its id begins with the time at which the databases were
copied, by which the newest is found, and ends with the digest of the manifest: a changed file does not match that, a
changed manifest not its id. On a disk a folder gets its name when it is whole. Nothing keeps several machines from one
place, so that the newest backup may be another one's: which, each says itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import MAXYEAR, UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from raymlops.config.credentials import ADVICE, holds_credential
from raymlops.config.paths import local_path
from raymlops.errors import NotFoundError, RefusedError, StorageError, UsageError
from raymlops.lifecycle.backup.contents import FILE, Contents, origin
from raymlops.storage import filesystem
from raymlops.storage.manifest import BACKUP, MANIFEST, Digests, damaged, entry_of, mismatch
from raymlops.storage.scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = "backups"
_ID = re.compile(r"\d{8}T\d{6}Z-([0-9a-f]{16})")
_NAMED = 16
_READ_AT_A_TIME = 16
_TIME = "%Y%m%dT%H%M%SZ"


def checked(uri: str) -> str:
    """Return a place as an absolute path or URI.

    Raises:
        UsageError: it holds a credential.
    """
    if holds_credential(uri):
        raise UsageError(f"the place of backups {ADVICE}", hint="Give it by variables such as AWS_SECRET_ACCESS_KEY.")
    return filesystem.absolute(uri)


def check_place(to: str) -> None:
    """Make sure that backups can be written to a place, which is made where there is none, before any work is done.

    Raises:
        StorageError: they cannot; the message names what is refused.
    """
    folder = local_path(to)
    try:
        if folder is not None and not folder.exists():
            folder.mkdir(parents=True, mode=0o700)
        filesystem.check_writable(to)
        filesystem.entries(filesystem.join(to, FOLDER))
    except (StorageError, OSError) as error:
        cause = error.message if isinstance(error, StorageError) else f"{to!r} cannot be made: {error.strerror}"
        raise StorageError(
            f"no backup was written: {cause}",
            hint="--to names a folder that this user may write, or a bucket with the rights to list it and to put, get "
            "and delete objects (on S3 ListBucket, PutObject, GetObject, DeleteObject).",
        ) from error


@contextmanager
def draft(to: str) -> Iterator[Path]:
    """Yield an empty folder of its owner's alone in which a backup is prepared; it is gone afterwards."""
    local = local_path(filesystem.join(to, FOLDER))
    with filesystem.errors(to), scratch() if local is None else filesystem.temporary_folder(local) as folder:
        folder.chmod(0o700)
        yield folder


def publish(folder: Path, to: str, *, at: datetime) -> str:
    """Give a prepared backup its manifest and its name, which begins with a time (``next_time``), and return that.

    Raises:
        StorageError: it cannot be written; there is no backup then.
    """
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    manifest = BACKUP.encode({name: entry_of(folder / name) for name in files})
    (folder / MANIFEST).write_bytes(manifest)
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    backup_id = f"{at:{_TIME}}-{hashlib.sha256(manifest).hexdigest()[:_NAMED]}"
    uri = filesystem.join(to, FOLDER, backup_id)
    if local_path(uri) is None:
        for name in (*files, MANIFEST):
            filesystem.upload(folder / name, filesystem.join(uri, name))
    else:
        with filesystem.errors(uri):
            filesystem.publish_folder(folder, Path(uri))
    return backup_id


def next_time(to: str, made_at: datetime) -> datetime:
    """Return the time in the name of a backup that begins now: later than those that are there.

    Whatever the clock says. It is asked before the databases are copied: what ends last may be what began first, with
    the older content.

    Raises:
        StorageError: the place cannot be read.
    """
    times = map(_time_in, filesystem.entries(filesystem.join(to, FOLDER)))
    return max([made_at, *(time + timedelta(seconds=1) for time in times if time is not None)])


@dataclass(frozen=True)
class Listed:
    """A whole backup in a place, as its ``backup.json`` says it, which nothing has checked yet."""

    id: str
    made_at: str = ""
    made_by: str = ""
    state_id: str | None = None

    @property
    def order(self) -> tuple[str, str, str]:
        """Return what the newest has most of: several may begin in one second."""
        return self.id.partition("-")[0], self.made_at, self.id


def newest(uri: str) -> tuple[str, list[str]]:
    """Return the newest backup in a place, and the unfinished ones.

    Raises:
        NotFoundError: there is none.
        RefusedError: there are others of another state; the hint lists the newest of each.
        StorageError: the place cannot be read.
    """
    found = {name: files for name, files in _listing(uri).items() if files is not None and _time_in(name)}
    whole = [name for name, files in found.items() if MANIFEST in files]
    unfinished = [name for name in found if name not in whole]
    if not whole:
        cut = f": {len(found)} unfinished" if found else ""
        raise NotFoundError(f"there is no backup in {uri}{cut}", hint="raymlops backup --to URI writes one.")
    with ThreadPoolExecutor(_READ_AT_A_TIME) as pool:
        listed = sorted(pool.map(lambda name: _listed(uri, name), whole), key=lambda one: one.order)
    last = {one.state_id: one for one in listed if one.made_at}
    if listed[-1].made_at and last.keys() - {None, listed[-1].state_id}:
        each = sorted(last.values(), key=lambda one: one.order)
        lines = [f"--backup {one.id}  {origin(one.state_id, one.made_by, one.made_at)}" for one in each]
        raise RefusedError(
            f"{uri} has backups of several states: the newest may be of another one than is to be restored",
            hint="Name one; the newest of each:\n  " + "\n  ".join(lines),
        )
    return listed[-1].id, unfinished


def _listed(uri: str, backup_id: str) -> Listed:
    """Return a backup with what it says of itself; one that says nothing is found to be damaged by who opens it."""
    try:
        data = json.loads(filesystem.read_bytes(filesystem.join(uri, FOLDER, backup_id, FILE)))
        return Listed(backup_id, str(data["made_at"]), str(data["made_by"]), data["state_id"])
    except (NotFoundError, ValueError, KeyError, TypeError):
        return Listed(backup_id)


def _time_in(name: str) -> datetime | None:
    """Return the time in the name of a backup; None for other names."""
    if _ID.fullmatch(name) is None:
        return None
    try:
        time = datetime.strptime(name.partition("-")[0], _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None
    return time if time.year < MAXYEAR else None


@contextmanager
def opened(uri: str, backup_id: str) -> Iterator[tuple[Path, Contents]]:
    """Yield a private local copy of a backup, each file of it checked, and what it says of itself.

    Raises:
        NotFoundError: there is no such backup, or it is unfinished; the hint lists those that there are.
        RefusedError: a file, or the manifest, is not what was written.
        StorageError: the place cannot be read, the disk of ``TMPDIR`` has no room for it, or a newer raymlops wrote
            the backup.
    """
    where = filesystem.join(uri, FOLDER, backup_id)
    named = _ID.fullmatch(backup_id)
    if named is None:
        raise _missing(uri, backup_id)
    try:
        data = filesystem.read_bytes(filesystem.join(where, MANIFEST))
    except NotFoundError as error:
        raise _missing(uri, backup_id) from error
    got = hashlib.sha256(data).hexdigest()[:_NAMED]
    if got != named[1]:
        raise _changed(where, f"{MANIFEST} is damaged: expected a SHA-256 that begins with {named[1]}, got {got}")
    files = _files(where, data)
    with scratch() as folder:
        filesystem.check_space(folder, need_bytes=sum(entry.size for entry in files.values()))
        for name, entry in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as target:
                problem = mismatch(filesystem.reader(filesystem.join(where, name)), entry, target)
            if problem is not None:
                raise _changed(where, damaged(name, *problem))
        yield folder, Contents.from_dict(json.loads((folder / FILE).read_bytes()))


def _listing(uri: str) -> dict[str, frozenset[str] | None]:
    try:
        return filesystem.listing(filesystem.join(uri, FOLDER))
    except StorageError as error:
        raise StorageError(
            error.message,
            hint="A backup is read with the rights to list its place and to get objects (on S3 ListBucket, GetObject).",
        ) from error


def _files(where: str, data: bytes) -> Digests:
    try:
        version, files = BACKUP.decode(data)
    except ValueError as error:
        raise _changed(where, f"{MANIFEST} cannot be read: {error}") from error
    if version > BACKUP.version:
        raise StorageError(
            f"the backup {where} has format {version}; this raymlops reads up to {BACKUP.version}",
            hint="A newer raymlops wrote it: pip install -U raymlops.",
        )
    if FILE not in files:
        raise _changed(where, f"{MANIFEST} lacks {FILE}")
    for name in files:
        if any(part in {"", ".", ".."} for part in name.split("/")):
            raise _changed(where, f"{MANIFEST} names {name!r}")
    return files


def _missing(uri: str, backup_id: str) -> NotFoundError:
    there = ", ".join(name for name, files in _listing(uri).items() if files is not None and MANIFEST in files)
    return NotFoundError(f"there is no backup {backup_id} in {uri}", hint=f"Those that are whole: {there or 'none'}.")


def _changed(where: str, problem: str) -> RefusedError:
    return RefusedError(
        f"the backup {where}: {problem}; nothing was restored", hint="Restore another one: --backup ID."
    )
