"""One change of what is live at a time, over everything that it takes: read, write, send.

Owns the lock beside the database, and knows who holds it. The operating system, or the server, gives it back when its
holder dies, however that happens. Knows nothing of deployments.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import sqlalchemy as sa

from raymlops.errors import RefusedError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Connection, Engine

POLL_S = 0.1
_KEY = 7_206_517_312  # any number that is ours: Postgres' advisory locks share one space
_MAX_NAME = 63
"""Characters of an application name in Postgres."""
_log = logging.getLogger(__name__)


class Lock(Protocol):
    """A lock that can be tried, and asked who has it."""

    def try_take(self) -> bool:
        """Take the lock if it is free; return whether it is ours now."""

    def holder(self) -> str:
        """Return who has it, as far as that can be told."""


def wait_for(lock: Lock, *, wait_s: float) -> None:
    """Take a lock, waiting for whoever has it; say once that it waits.

    Raises:
        RefusedError: it was not free within ``wait_s``; the message names its holder.
    """
    deadline = time.monotonic() + wait_s
    told = False
    while not lock.try_take():
        holder = lock.holder()
        if time.monotonic() > deadline:
            raise RefusedError(
                f"{holder} is changing what is live; waited {wait_s:g} s, nothing was changed",
                hint="Let it finish, or end that process, then run the same command again.",
            )
        if not told:
            _log.warning("waiting for %s, which is changing what is live", holder)
            told = True
        time.sleep(POLL_S)


@contextmanager
def file_lock(path: Path, me: str) -> Iterator[Lock]:
    """Open the lock of a SQLite database: a file beside it, which stays when the lock is given back.

    Raises:
        StorageError: the file cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"cannot open the lock file {path}: {error.strerror}") from error
    try:
        yield _File(descriptor, me)
    finally:
        os.close(descriptor)  # which gives the lock back


@contextmanager
def server_lock(engine: Engine, me: str) -> Iterator[Lock]:
    """Open the lock of a Postgres database: an advisory one, held by a connection of its own."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.detach()  # closed for good afterwards, not lent again with our lock and our name
        name = f"raymlops {me}"[:_MAX_NAME]
        connection.execute(sa.text("SELECT set_config('application_name', :name, false)"), {"name": name})
        # A machine that is gone says no goodbye: the server asks after it within two minutes, not two hours.
        connection.execute(sa.text("SELECT set_config('tcp_keepalives_idle', '60', false)"))
        yield _Server(connection)


class _File:
    def __init__(self, descriptor: int, me: str) -> None:
        self._descriptor = descriptor
        self._me = me

    def try_take(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, self._me.encode(), 0)
        return True

    def holder(self) -> str:
        # Between taking the lock and writing the name the file is empty, or names the holder before.
        return os.pread(self._descriptor, 500, 0).decode(errors="replace") or "another process"


class _Server:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def try_take(self) -> bool:
        return bool(self._connection.scalar(sa.text("SELECT pg_try_advisory_lock(:key)"), {"key": _KEY}))

    def holder(self) -> str:
        query = sa.text(
            "SELECT activity.application_name FROM pg_locks AS locks JOIN pg_stat_activity AS activity USING (pid) "
            "WHERE locks.locktype = 'advisory' AND locks.granted AND locks.classid = :high AND locks.objid = :low"
        )
        name = self._connection.scalar(query, {"high": _KEY >> 32, "low": _KEY & 0xFFFFFFFF})
        return (name or "").removeprefix("raymlops ") or "another process"
