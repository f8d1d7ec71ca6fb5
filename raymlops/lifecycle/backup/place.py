"""The place that backups are in: ``backups/ID/``, one folder each, beside the ``bundles/`` that all of them share.

A backup is there once its manifest is, which is written last. Its id begins with a time, by which the newest is found,
and ends with the digest of the manifest: a changed file does not match that, a changed manifest not its id. On a disk a
folder gets its name when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from raymlops.config.credentials import ADVICE, holds_credential
from raymlops.config.paths import local_path
from raymlops.errors import NotFoundError, RefusedError, StorageError, UsageError
from raymlops.lifecycle.backup.contents import FILE, Contents
from raymlops.storage import filesystem
from raymlops.storage.manifest import BACKUP, MANIFEST, Digests, damaged, entry_of, mismatch
from raymlops.storage.scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = "backups"
_ID = re.compile(r"\d{8}T\d{6}Z-([0-9a-f]{16})")
_NAMED = 16
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


def publish(folder: Path, to: str, *, made_at: datetime) -> str:
    """Give a prepared backup its manifest and its name, and return that.

    Raises:
        StorageError: it cannot be written; there is no backup then.
    """
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    manifest = BACKUP.encode({name: entry_of(folder / name) for name in files})
    (folder / MANIFEST).write_bytes(manifest)
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    backup_id = f"{_after_others(to, made_at):{_TIME}}-{hashlib.sha256(manifest).hexdigest()[:_NAMED]}"
    uri = filesystem.join(to, FOLDER, backup_id)
    if local_path(uri) is None:
        for name in (*files, MANIFEST):
            filesystem.upload(folder / name, filesystem.join(uri, name))
    else:
        with filesystem.errors(uri):
            filesystem.publish_folder(folder, Path(uri))
    return backup_id


def _after_others(to: str, made_at: datetime) -> datetime:
    """Return the time in the name of a new backup: a later one than in those that are there, whatever the clock says.

    The newest is found by its name. A clock may be set back, and two backups be made in one second.
    """
    named = filter(_ID.fullmatch, filesystem.entries(filesystem.join(to, FOLDER)))
    times = (datetime.strptime(name.partition("-")[0], _TIME).replace(tzinfo=UTC) for name in named)
    return max([made_at, *(time + timedelta(seconds=1) for time in times)])


def newest(uri: str) -> tuple[str, list[str]]:
    """Return the newest backup in a place, and the unfinished ones.

    Raises:
        NotFoundError: there is none.
        StorageError: the place cannot be read.
    """
    found = {name: files for name, files in _listing(uri).items() if files is not None and _ID.fullmatch(name)}
    whole = [name for name, files in found.items() if MANIFEST in files]
    if not whole:
        cut = f": {len(found)} unfinished" if found else ""
        raise NotFoundError(f"there is no backup in {uri}{cut}", hint="raymlops backup --to URI writes one.")
    return max(whole), [name for name in found if name not in whole]


def has(uri: str, backup_id: str) -> bool:
    """Return whether a place has a whole backup of this id.

    Raises:
        StorageError: the place cannot be read.
    """
    return MANIFEST in (_listing(uri).get(backup_id) or ())


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
