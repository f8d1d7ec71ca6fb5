"""Locks beside the state database, released when their holder dies, however that happens.

For SQLite a lock is a file with the operating system's ``flock`` on it; for Postgres an advisory lock, held by a
connection of its own. Owns taking and asking who has it. Knows nothing of what is locked.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from multiprocessing.util import register_after_fork
from typing import TYPE_CHECKING, Any, Protocol

import sqlalchemy as sa

from raymlops.errors import StorageError
from raymlops.state.engine import database_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Connection, Engine

POLL_S = 0.1
UNKNOWN = "another process"
_MAX_NAME = 63
"""Characters of an application name in Postgres."""
_MAX_TEXT = 500


class Lock(Protocol):
    """A lock that can be tried, and asked who has it."""

    def try_take(self) -> bool:
        """Take the lock if it is free; return whether it is ours now."""

    def holder(self) -> str | None:
        """Return who has it, as far as that can be told; None where nobody seems to."""


def take(lock: Lock, *, wait_s: float, on_wait: Callable[[str], None] | None = None) -> str | None:
    """Take a lock, waiting for its holder; return None once it is ours, or who still holds it after ``wait_s``.

    ``on_wait`` is told once that there is a wait, and for whom.
    """
    deadline = time.monotonic() + wait_s
    told = on_wait is None
    while not lock.try_take():
        holder = lock.holder() or UNKNOWN
        if time.monotonic() > deadline:
            return holder
        if not told and on_wait is not None:
            on_wait(holder)
            told = True
        time.sleep(POLL_S)
    return None


@contextmanager
def open_lock(engine: Engine, *, file: Path | None, key: int, me: str) -> Iterator[Lock | None]:
    """Open a lock of a database, untaken; leaving gives it back. None for a database in memory.

    ``file`` is the lock file for SQLite; it stays when the lock is given back. ``key`` stands for the lock in
    Postgres, ``me`` is what others are told while we hold it.

    Raises:
        StorageError: the file cannot be made.
    """
    if engine.dialect.name == "postgresql":
        # Closed for good afterwards, not lent again with our lock and our name.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.detach()
            yield _Server(connection, key, me)
    elif database_path(engine) is None or file is None:
        yield None
    else:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = open_shared(file)
        except OSError as error:
            raise StorageError(f"cannot open the lock file {file}: {error.strerror}") from error
        try:
            yield _File(descriptor, me)
        finally:
            os.close(descriptor)  # which gives the lock back


def open_shared(file: Path) -> int:
    """Open a file to read and write, made if it does not exist; return its descriptor.

    Who may write in its folder may write in it: users who share a group's folder share its locks and database,
    whatever their umask. What earlier releases made for their user alone is opened up by that user.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    found, wanted = os.fstat(descriptor), 0o600 | file.parent.stat().st_mode & 0o066
    if found.st_uid == os.geteuid() and found.st_mode & 0o666 != wanted:
        os.fchmod(descriptor, wanted)
    return descriptor


def file_holder(file: Path) -> str | None:
    """Return who holds a lock file; None where nobody does. Touches it for an instant, and makes none.

    Raises:
        StorageError: the file cannot be read, so that nobody knows.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read the lock file {file}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(descriptor) or UNKNOWN
    else:
        return None
    finally:
        os.close(descriptor)


class _File:
    def __init__(self, descriptor: int, me: str) -> None:
        self._descriptor = descriptor
        self._me = me
        _stay_out_of_children(self, descriptor)

    def try_take(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, self._me.encode(), 0)
        return True

    def holder(self) -> str | None:
        # Between taking the lock and writing the name the file is empty, or names the holder before.
        return _read(self._descriptor)


class _Server:
    def __init__(self, connection: Connection, key: int, me: str) -> None:
        self._connection = connection
        self._key = key
        name = f"raymlops {me}"[:_MAX_NAME]
        connection.execute(sa.text("SELECT set_config('application_name', :name, false)"), {"name": name})
        # A machine that is gone closes no connection: the server probes it within two minutes, not two hours.
        connection.execute(sa.text("SELECT set_config('tcp_keepalives_idle', '60', false)"))
        socket: Any = connection.connection.dbapi_connection
        _stay_out_of_children(self, socket.fileno())

    def try_take(self) -> bool:
        return bool(self._connection.scalar(sa.text("SELECT pg_try_advisory_lock(:key)"), {"key": self._key}))

    def holder(self) -> str | None:
        query = sa.text(
            "SELECT activity.application_name FROM pg_locks AS locks JOIN pg_stat_activity AS activity USING (pid) "
            "WHERE locks.locktype = 'advisory' AND locks.granted AND locks.classid = :high AND locks.objid = :low "
            "AND locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        name = self._connection.scalar(query, {"high": self._key >> 32, "low": self._key & 0xFFFFFFFF})
        return None if name is None else name.removeprefix("raymlops ") or UNKNOWN


def _read(descriptor: int) -> str | None:
    return os.pread(descriptor, _MAX_TEXT, 0).decode(errors="replace") or None


def _stay_out_of_children(lock: Lock, descriptor: int) -> None:
    """Let a forked child, such as a torch data loader's, not keep a lock alive whose holder was killed.

    A copy of the descriptor holds the file's lock, or the server's connection, as well as the original does. The child
    gets a descriptor of nothing in its place, since closing it could close what is opened under its number next.
    """

    def forget(_lock: Lock) -> None:
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(nothing, descriptor, inheritable=False)
        os.close(nothing)

    register_after_fork(lock, forget)  # forgotten with the lock itself
