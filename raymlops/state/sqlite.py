"""What every SQLite file of ours needs, Optuna's too; without SQLAlchemy."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
LOCKED = "database is locked"
_LOOK_S = 0.02
_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = (
    "nfs",
    "cifs",
    "smb",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "afs",
    "fuse.sshfs",
    "fuse.glusterfs",
    "fuse.ceph",
)
"""How the types of filesystems begin that several machines may mount."""


def use_write_ahead_log(connection: Any, *, wait_s: float, mounts: Path = _MOUNTS) -> bool:
    """Switch the file of a DB-API connection to the write-ahead log: readers and the writer do not wait for each other.

    SQLite does not apply its busy timeout where two processes switch a new file at once: one of them gets an error.
    A file on a network's filesystem stays as it is, and False is returned: the log's index is in memory that machines
    do not share. ``mounts`` lists filesystems as Linux does.

    Raises:
        sqlite3.OperationalError: the file is locked for ``wait_s``, or cannot be written.
    """
    file = next(row[2] for row in connection.execute("PRAGMA database_list") if row[1] == "main")
    if file and _type_of_filesystem(file, mounts).startswith(_NETWORK):
        return False
    when_unlocked(lambda: connection.execute("PRAGMA journal_mode = WAL").close(), until_s=time.monotonic() + wait_s)
    return True


def when_unlocked(act: Callable[[], T], *, until_s: float) -> T:
    """Return what ``act`` returns; repeat it while the database is locked, until ``until_s`` of the monotonic clock.

    SQLite's own timeout does not cover every lock: it ends at once what would be a deadlock.
    """
    while True:
        try:
            return act()
        except Exception as error:
            cause = getattr(error, "orig", error)  # in an error of SQLAlchemy's
            if not _is_locked(cause) or time.monotonic() >= until_s:
                raise
        time.sleep(_LOOK_S)


def _is_locked(error: object) -> bool:
    return isinstance(error, sqlite3.OperationalError) and LOCKED in str(error)


def _type_of_filesystem(file: str, mounts: Path) -> str:
    """Return the type of the filesystem that holds a file; empty where that is not known."""
    found: tuple[int, str] = (0, "")
    with suppress(OSError):
        for line in mounts.read_text(encoding="utf-8").splitlines():
            # 36 35 98:0 /root /mount/point options ... - type source options; a later one hides an earlier one.
            left, _, right = line.partition(" - ")
            folder = left.split()[4].replace("\\040", " ")
            if len(folder) >= found[0] and os.path.commonpath([folder, file]) == folder:
                found = (len(folder), right.split()[0])
    return found[1]
