"""Locks beside the state database, released when their holder dies, however that happens.

For SQLite a lock is a file with the operating system's ``flock`` on it; for Postgres an advisory lock, held by a
connection of its own. Knows nothing of what is locked.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from multiprocessing.util import register_after_fork
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from raymlops.errors import StorageError
from raymlops.state.engine import errors, this_user
from raymlops.storage.filesystem import mode_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Connection, Engine

POLL_S = 0.1
UNKNOWN = "another process"
_MAX_NAME = 63
"""Characters of an application name in Postgres."""
_MIN_WHO = 12
"""Of those, for who it is."""
_MAX_TEXT = 500
_PROCESS = re.compile(r"(?P<user>.+) \(process (?P<pid>\d+): ")


@contextmanager
def hold(
    engine: Engine,
    *,
    file: Path | None,
    key: int,
    purpose: str,
    wait_s: float,
) -> Iterator[Hold]:
    """Hold a lock of a database for the block; yield it, with who still holds it after ``wait_s`` if that is another.

    ``file`` is the lock file for SQLite, which stays; without one, in memory, nothing is locked. ``key`` identifies the
    lock in Postgres. Others see who holds it, since when and for what ``purpose``.

    Raises:
        StorageError, UnreachableError: the lock cannot be taken.
    """
    taken = Hold(engine, file=file, key=key, me=f"{this_user()} (process {os.getpid()}: {purpose})")
    try:
        taken.take(wait_s=wait_s)
        yield taken
    finally:
        taken.close()


class Hold:
    """A lock that this process took, or tried to."""

    def __init__(self, engine: Engine, *, file: Path | None, key: int, me: str) -> None:
        self.holder: str | None = None
        """Who else holds it; None if it is ours."""
        self._engine = engine
        self._file = file
        self._key = key
        self._me = me
        self._lock: _ServerLock | _FileLock | None = None
        self._session: int | None = None
        """The server's session that last took it."""

    def take(self, *, wait_s: float = 0.0) -> None:
        """Take the lock, if nobody else holds it by then.

        Where our own lost session still holds it on the server, nobody has it: it is lost, and can be taken later.

        Raises:
            StorageError, UnreachableError: it cannot be taken.
        """
        with errors(self._engine):
            if self._engine.dialect.name == "postgresql":
                self._lock = _ServerLock(self._engine, self._key, self._me)
            elif self._file is not None:
                self._lock = _FileLock(self._file, self._me)
            self.holder = None if self._lock is None else _take(self._lock, wait_s=wait_s)
            if isinstance(self._lock, _ServerLock):
                if self.holder is None:
                    self._session = self._lock.session
                elif self._session is not None and self._lock.holders_session == self._session:
                    self.holder = None
                    self.close()

    def check_session(self) -> None:
        """Check that the lock lasts.

        Raises:
            StorageError: the server's sessions are shared.
        """
        if isinstance(self._lock, _ServerLock):
            with errors(self._engine):
                self._lock.check_session(self._engine)

    def lost(self) -> bool:
        """Return whether the lock is no longer ours: the server was restarted, or has closed its connection."""
        if self._lock is None:  # it could not be taken again
            return self._engine.dialect.name == "postgresql" or self._file is not None
        return not self._lock.held()

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def holder_of(engine: Engine, *, file: Path | None, key: int) -> str | None:
    """Return who holds a lock; None if it is free. The arguments are those of ``hold``.

    Raises:
        StorageError, UnreachableError: that cannot be found out.
    """
    if engine.dialect.name == "postgresql":
        with errors(engine), engine.connect() as connection:
            return _server_holder(connection, key)[0]
    return None if file is None else _file_holder(file)


def what_to_do(holder: str) -> str:
    """Return what to do about a lock that is not released, by whether its holder here is stopped."""
    import psutil

    end = "continue that process or end it, which releases the lock."
    found = _PROCESS.match(holder)
    if found is not None and found["user"] == this_user():
        with suppress(psutil.Error):
            if psutil.Process(int(found["pid"])).status() in {psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP}:
                return f"It is stopped (kill -CONT {found['pid']}): {end}"
            return "It runs, and is only slow: it releases the lock by itself. End it only if it hangs for minutes."
    return f"It may be slow. If it is stopped, or its machine sleeps: {end}"


def _take(lock: _ServerLock | _FileLock, *, wait_s: float) -> str | None:
    deadline = time.monotonic() + wait_s
    while not lock.try_take():
        holder = lock.holder()
        if time.monotonic() > deadline:
            return holder
        time.sleep(POLL_S)
    return None


def open_shared(file: Path) -> int:
    """Open a file to read and write, created if it does not exist; return its descriptor.

    Everyone who may write in its folder may read and write it, and nobody else: users who share a group's folder share
    its locks and database, whatever their umask. Its user corrects a file that an earlier release made otherwise.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    found, wanted = os.fstat(descriptor), mode_in(file.parent)
    if found.st_uid == os.geteuid() and found.st_mode & 0o666 != wanted:
        os.fchmod(descriptor, wanted)
    return descriptor


def _file_holder(file: Path) -> str | None:
    """Return who holds a lock file, without creating it."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read the lock file {file}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(descriptor)
    else:
        return None
    finally:
        os.close(descriptor)


class _FileLock:
    def __init__(self, file: Path, me: str) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._descriptor = open_shared(file)
        except OSError as error:
            raise StorageError(f"cannot open the lock file {file}: {error.strerror}") from error
        self._path = file
        self._me = me
        _stay_out_of_children(self, self._descriptor)

    def try_take(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, self._me.encode(), 0)
        return True

    def holder(self) -> str:
        # Between taking the lock and writing the name, the file is empty or names the previous holder.
        return _read(self._descriptor)

    def held(self) -> bool:
        """Return whether others would find this lock: its file may have been removed."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except OSError:
            return False

    def close(self) -> None:
        os.close(self._descriptor)  # releases the lock


class _ServerLock:
    def __init__(self, engine: Engine, key: int, me: str) -> None:
        # Closed afterwards instead of returned to the pool with our lock and our name.
        self._connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._connection.detach()
        self._key = key
        name = shortened(f"raymlops {me}")
        self._connection.execute(sa.text("SELECT set_config('application_name', :name, false)"), {"name": name})
        # A machine that is gone closes no connection: the server probes it within two minutes, not two hours.
        self._connection.execute(sa.text("SELECT set_config('tcp_keepalives_idle', '60', false)"))
        socket: Any = self._connection.connection.dbapi_connection
        _stay_out_of_children(self, socket.fileno())
        self.session: int = self._connection.scalar(sa.text("SELECT pg_backend_pid()"))
        self.holders_session: int | None = None
        """Of the holder that was last found."""

    def check_session(self, engine: Engine) -> None:
        """Check that the session is this connection's alone."""
        with engine.connect() as other:
            refuse_shared_sessions(self._connection, other)

    def held(self) -> bool:
        """Return whether the session that took the lock still has it."""
        with suppress(sa.exc.SQLAlchemyError):
            return bool(self._connection.scalar(sa.text(_OWN), _halves(self._key)))
        return False

    def close(self) -> None:
        with suppress(sa.exc.SQLAlchemyError):
            self._connection.close()

    def try_take(self) -> bool:
        return bool(self._connection.scalar(sa.text("SELECT pg_try_advisory_lock(:key)"), {"key": self._key}))

    def holder(self) -> str:
        name, self.holders_session = _server_holder(self._connection, self._key)
        return name or UNKNOWN


def shortened(name: str) -> str:
    """Return a name that fits into Postgres: the user and host lose their end, not what they hold a lock for."""
    who, bracket, rest = name.partition(" (")
    return f"{who[: max(_MIN_WHO, _MAX_NAME - len(bracket + rest))]}{bracket}{rest}"[:_MAX_NAME]


def refuse_shared_sessions(connection: Connection, other: Connection) -> None:
    """Refuse a pooler that gives one session of the server to several connections, as PgBouncer's transaction mode.

    A lock of such a session is everybody's, and is released when the pooler likes.

    Raises:
        StorageError: within a transaction the other connection has our session, or we have another one by then.
    """
    asked = sa.text("SELECT pg_backend_pid()")
    with other.begin():
        first, others, again = connection.scalar(asked), other.scalar(asked), connection.scalar(asked)
    if first != again or first == others:
        raise StorageError(
            "the state database is behind a pooler in transaction mode, in which locks do not last",
            hint="Connect to the server itself, or to PgBouncer with pool_mode = session.",
        )


_OWN = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = :high AND objid = :low "
    "AND pid = pg_backend_pid()"
)


def _halves(key: int) -> dict[str, int]:
    return {"high": key >> 32, "low": key & 0xFFFFFFFF}


def _server_holder(connection: Connection, key: int) -> tuple[str | None, int | None]:
    """Return who holds a lock, and that one's session; None where nobody does."""
    query = sa.text(
        "SELECT activity.application_name, activity.backend_start, activity.pid "
        "FROM pg_locks AS locks JOIN pg_stat_activity AS activity USING (pid) "
        "WHERE locks.locktype = 'advisory' AND locks.granted AND locks.classid = :high AND locks.objid = :low "
        "AND locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    found = connection.execute(query, _halves(key)).one_or_none()
    if found is None:
        return None, None
    name, since, pid = found
    name = (name or UNKNOWN).removeprefix("raymlops ")
    return f"{_since(name, since) if since else name}, backend {pid}", pid  # other roles may not see since when


def _read(descriptor: int) -> str:
    name = os.pread(descriptor, _MAX_TEXT, 0).decode(errors="replace") or UNKNOWN
    return _since(name, datetime.fromtimestamp(os.fstat(descriptor).st_mtime, UTC))


def _since(name: str, since: datetime) -> str:
    return f"{name} since {since.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _stay_out_of_children(lock: _ServerLock | _FileLock, descriptor: int) -> None:
    """Let a forked child, such as a torch data loader's, not keep a lock alive whose holder was killed.

    A copy of the descriptor holds the file's lock, or the server's connection, as well as the original does. The child
    gets a descriptor of nothing in its place, since closing it could close what is opened under its number next.
    """

    def forget(_lock: object) -> None:
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(nothing, descriptor, inheritable=False)
        os.close(nothing)

    register_after_fork(lock, forget)  # forgotten with the lock itself
