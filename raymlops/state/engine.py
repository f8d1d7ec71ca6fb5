"""The connection to a state database: its URL read, SQLite made safe for several processes, errors without passwords.

Owns which databases are supported and how each is opened. Knows nothing of tables.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import make_url

from raymlops.config.paths import sqlite_path
from raymlops.errors import StorageError, UnreachableError, UsageError
from raymlops.state.sqlite import use_write_ahead_log

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

BUSY_TIMEOUT_MS = 15_000

_MALFORMED = ("not a database", "malformed")
_DAMAGED = (
    "The file is damaged; what is live keeps serving. Stop whatever uses it, restore a backup of the file in its place "
    "(delete its -wal and -shm files), then run: raymlops deploy --restore --takeover"
)
_LOCKED = "Nothing was written. Let that process end, or end it, then run the same command again."
TERMINATE = "On Postgres, SELECT pg_terminate_backend(...) of its backend does as well."
_LOCK_TIMEOUT = "55P03"
"""SQLSTATE of Postgres: lock_not_available."""
_UNWRITABLE = "Can the file and its folder be written? Is the disk full?"


def open_engine(url: str) -> Engine:
    """Return SQLAlchemy's engine of a URL; the folder of a SQLite file is made, and nothing is connected yet.

    Raises:
        UsageError: the URL cannot be read, names a database that is not supported, or its driver is not installed.
        StorageError: the folder cannot be made.
    """
    try:
        parsed = make_url(url)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise UsageError("the state URL is not a SQL URL such as sqlite:////path/state.db") from error
    backend = parsed.get_backend_name()
    if backend not in {"sqlite", "postgresql"}:
        raise UsageError(f"the state database must be sqlite or postgresql, got {backend}")
    if backend == "postgresql":
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        try:
            return sa.create_engine(parsed, connect_args={"connect_timeout": 10}, pool_pre_ping=True)
        except ModuleNotFoundError as error:
            raise UsageError(
                f"the Postgres driver {error.name} is not installed", hint="pip install 'raymlops[postgres]'"
            ) from error
    if (file := sqlite_path(url)) is not None:
        parsed, folder = parsed.set(database=str(file)), file.parent
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError(f"cannot make the folder {folder}: {error.strerror}") from error
    engine = sa.create_engine(parsed)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def database_path(engine: Engine) -> Path | None:
    """Return the file of a SQLite database; None for a server, and for one in memory, which has no other user."""
    database = engine.url.database
    if engine.dialect.name != "sqlite" or not database or database == ":memory:":
        return None
    return Path(database)


@contextlib.contextmanager
def errors(engine: Engine) -> Iterator[None]:
    """Turn what SQLAlchemy raises into errors of ours, without the URL's password and without the statement."""
    shown = engine.url.render_as_string(hide_password=True)
    try:
        yield
    except sa.exc.DBAPIError as error:
        cause = str(error.orig).strip().splitlines()[0] if error.orig else type(error).__name__
        sqlite = engine.dialect.name == "sqlite"
        if (sqlite and "locked" in cause) or getattr(error.orig, "sqlstate", None) == _LOCK_TIMEOUT:
            held = f"the state database {shown} is locked by {_writer(engine) if sqlite else _blocker(engine)}"
            raise UnreachableError(held, hint=_LOCKED if sqlite else f"{_LOCKED} {TERMINATE}") from error
        if sqlite:
            hint = _DAMAGED if any(text in cause for text in _MALFORMED) else _UNWRITABLE
            raise StorageError(f"the state database {shown}: {cause}", hint=hint) from error
        raise UnreachableError(
            f"the state database {shown}: {cause}", hint="Does the server run, and may this user connect and write?"
        ) from error
    except sa.exc.SQLAlchemyError as error:
        raise StorageError(f"the state database {shown}: {type(error).__name__}") from error


def this_user() -> str:
    """Return who this is, as audit and locks say it: ``user@host``."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _writer(engine: Engine) -> str:
    """Return who writes to a SQLite file: Linux lists the lock that SQLite (3) takes for it, byte 120 of the index."""
    with contextlib.suppress(OSError):
        inode = Path(f"{database_path(engine)}-shm").stat().st_ino
        for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines():
            mode, pid, file, start, _ = line.split()[-5:]
            if (mode, start) == ("WRITE", "120") and file.endswith(f":{inode}"):
                return f"process {pid}"
    return "another process"


def _blocker(engine: Engine) -> str:
    """Return who holds the table that every writer to Postgres locks first, or waited for it before us."""
    query = sa.text(
        "SELECT activity.pid, activity.application_name FROM pg_locks AS locks "
        "JOIN pg_stat_activity AS activity USING (pid) WHERE locks.relation = to_regclass('deployments') "
        "AND locks.mode NOT IN ('AccessShareLock', 'RowShareLock') ORDER BY locks.granted DESC, activity.xact_start"
    )
    with contextlib.suppress(sa.exc.SQLAlchemyError), engine.connect() as connection:
        for pid, name in connection.execute(query):
            return f"backend {pid}{f' ({name})' if name else ''}"
    return "another backend"


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late to hold a lock from the first read on
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    use_write_ahead_log(connection, wait_s=BUSY_TIMEOUT_MS / 1000)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("raymlops_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
