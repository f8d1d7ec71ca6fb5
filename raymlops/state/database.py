"""The state database: its URL, its transactions, and the lock over changes of what is live.

Credentials in the URL appear in no message.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Self

import sqlalchemy as sa

from raymlops.config.base import resolve
from raymlops.config.paths import sqlite_under
from raymlops.errors import BusyError
from raymlops.state.engine import TERMINATE, database_path, errors, open_engine
from raymlops.state.locks import hold, open_shared, what_to_do
from raymlops.state.migrate import is_newest, migrate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from sqlalchemy import Connection, Engine

    from raymlops.config.schema import ProjectSpec

    Given = Callable[[Connection], None]
    """What a change rests on beside what it changes: asked in its transaction, it raises where that is otherwise."""

_CHANGES_KEY = 7_206_517_312  # any number that is ours: Postgres' advisory locks share one space


class Database:
    """A connection pool to the state database. Use as a context manager, or call ``close``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, url: str) -> Self:
        """Connect and bring the schema up to date.

        Raises:
            StorageError: the file cannot be made or written, is no database, or has a newer schema.
            UnreachableError: the database server does not answer, or refuses us.
            UsageError: the URL cannot be read or names a database that is not supported.
        """
        state = cls(open_engine(url))
        try:
            _share(database_path(state._engine))
            # Reading first lets users without write permission run ``status`` and ``audit``.
            with state.reading() as connection:
                newest = is_newest(connection)
            if not newest:
                with state.writing() as connection:
                    migrate(connection)
        except BaseException:
            state.close()
            raise
        return state

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Return the SQL URL, with its password."""
        return self._engine.url.render_as_string(hide_password=False)

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    @contextlib.contextmanager
    def exclusive(self, purpose: str, *, wait_s: float) -> Iterator[None]:
        """Hold the one lock over changes of what is live; a change reads, writes and sends within it.

        Waits for another holder. The lock is released when its holder dies. It is not reentrant.

        Raises:
            BusyError: it was not free within ``wait_s``; the message names who holds it, and for what.
            StorageError, UnreachableError: the lock cannot be queried.
        """
        database, postgresql = database_path(self._engine), self._engine.dialect.name == "postgresql"
        file = None if database is None else Path(f"{database}.lock")
        with hold(self._engine, file=file, key=_CHANGES_KEY, purpose=purpose, wait_s=wait_s) as held:
            if held.holder is not None:
                raise BusyError(
                    f"{held.holder} holds the lock over changes of what is live",
                    hint=f"{what_to_do(held.holder)} {TERMINATE}" if postgresql else what_to_do(held.holder),
                )
            yield

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a transaction that reads, all of it as of its first statement."""
        engine = self._engine
        if engine.dialect.name == "postgresql":  # SQLite reads a snapshot anyway
            engine = engine.execution_options(isolation_level="REPEATABLE READ")
        with errors(engine), engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """Open a transaction that writes; other writers wait. A change belongs in one with its ``add_event``."""
        with errors(self._engine), self._engine.execution_options(raymlops_write=True).begin() as connection:
            if connection.dialect.name == "postgresql" and sa.inspect(connection).has_table("deployments"):
                # Two writers one after the other, as SQLite has it: each sees what the other left as "before".
                connection.execute(sa.text("SET LOCAL lock_timeout = '30s'"))
                connection.execute(sa.text("LOCK TABLE deployments IN SHARE ROW EXCLUSIVE MODE"))
            yield connection


def state_url(spec: ProjectSpec) -> str:
    """Return the SQL URL of the state database: ``storage.state``, or a SQLite file under ``storage.path``.

    Raises:
        ConfigError: ``storage.path`` is a URI, where no SQLite file can live, or the reference cannot be read.
    """
    if spec.storage.state is not None:
        return resolve(spec.storage.state, "storage.state")
    hint = "storage.state: {env: RAYMLOPS_STATE_URL} with postgresql+psycopg://user:password@host/database"
    return sqlite_under(spec.storage.path, "state.db", instead="storage.state", hint=hint)


def _share(file: Path | None) -> None:
    """Make a new SQLite file with the permissions of its folder; SQLite gives them to its -wal and -shm files."""
    if file is not None and not file.exists():
        with contextlib.suppress(OSError):  # connecting says what is wrong
            os.close(open_shared(file))
