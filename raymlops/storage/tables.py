"""Copy tables of a SQL database: all of them as of one moment, out of SQLite or PostgreSQL and into either.

Rows are read and written by the types of SQLAlchemy's tables, so that a copy needs no client tools, means the same in
both databases, and holds what its owner chooses. Knows nothing of what a table means.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from raymlops.config.paths import sqlite_path, sqlite_url
from raymlops.display import number_of
from raymlops.errors import RefusedError, StorageError, UnreachableError, UsageError
from raymlops.storage.filesystem import check_space
from raymlops.storage.scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from sqlalchemy import Connection, Engine

BATCH_ROWS = 2000
LOCKED_S = 60.0
"""How long a SQLite file may be locked by who writes to it."""
_RESTORED = sa.Table(
    "raymlops_restored",
    sa.MetaData(),
    sa.Column("what", sa.String(64), primary_key=True),
    sa.Column("backup", sa.String(64), nullable=False),
)
"""By which a database says whose rows it got, so that those of the original are never taken for restored ones.

A restore that nobody ended leaves it. It counts while there are as many rows as in the backup: none is newer."""


@dataclass(frozen=True)
class TableSet:
    """The tables of another library in a database of its own: what is in them, and how a copy of them comes back."""

    what: str
    """Names the database in errors."""
    tables: Sequence[sa.Table]
    """Those that travel, in the order of their references."""
    words: Mapping[str, tuple[str, ...]]
    """What a row of the tables is called that people know, and several."""
    by_itself: frozenset[str] = frozenset()
    """Tables in which the library writes one row when it makes them."""

    def there(self, url: str, *, file: Path, backup: str) -> str | None:
        """Return what is in a database, in words; None where that is nothing, or what this backup has in ``file``.

        Raises: as ``snapshot``.
        """
        with snapshot(url, what=self.what) as there, snapshot(sqlite_url(file), what=self.what) as source:
            return self._in_the_way(there, source, backup=backup)

    def settle(self, url: str) -> None:
        """Forget whose rows a database got: the restore is over, and they are its own from now on.

        Raises: as ``snapshot``.
        """
        with writing(url, what=self.what) as target:
            if self._origin(target) is not None:
                target.execute(sa.delete(_RESTORED).where(_RESTORED.c.what == self.what))

    def has_as_much(self, url: str, *, file: Path) -> bool:
        """Return whether each table that has rows in a copy has as many of them at least.

        Raises: as ``snapshot``.
        """
        with snapshot(url, what=self.what) as there, snapshot(sqlite_url(file), what=self.what) as source:
            counts = rows_in(there, self.tables)
            return all(counts.get(name, 0) >= count for name, count in rows_in(source, self.tables).items())

    def restore(self, file: Path, url: str, *, backup: str, change: Callable[[str, Any], Any]) -> None:
        """Write the rows of a copy into a database that has these tables and nothing in them, in one transaction.

        Nothing is done where the rows of this backup are there: a restore that was killed after it wrote them.

        Raises:
            RefusedError: the database is not empty; nothing was changed.
            StorageError, UnreachableError, UsageError: it cannot be written; nothing was changed.
        """
        with snapshot(sqlite_url(file), what=self.what) as source, writing(url, what=self.what) as target:
            if self._used(target):
                if (found := self._in_the_way(target, source, backup=backup)) is None:
                    return
                raise RefusedError(f"{self.what} is not empty: {found}")
            for table in reversed(self.tables):
                target.execute(sa.delete(table))
            copy_rows(source, target, self.tables, change=change)
            _RESTORED.create(target, checkfirst=True)
            target.execute(sa.delete(_RESTORED).where(_RESTORED.c.what == self.what))
            target.execute(sa.insert(_RESTORED).values(what=self.what, backup=backup))

    def _in_the_way(self, there: Connection, source: Connection, *, backup: str) -> str | None:
        counts, origin = self._used(there), self._origin(there)
        if not counts or (origin == backup and counts == rows_in(source, self.tables)):
            return None
        begun = f"; the restore of backup {origin} was not ended" if origin is not None else ""
        return f"{self._in_words(counts)}{begun}{', and its rows are others now' if origin == backup else ''}"

    def _origin(self, connection: Connection) -> str | None:
        if not sa.inspect(connection).has_table(_RESTORED.name):
            return None
        found: str | None = connection.scalar(sa.select(_RESTORED.c.backup).where(_RESTORED.c.what == self.what))
        return found

    def _used(self, connection: Connection) -> dict[str, int]:
        """Return how many rows there are, but {} where they are those that the library makes by itself."""
        counts = rows_in(connection, self.tables)
        return {} if counts.keys() <= self.by_itself and set(counts.values()) <= {1} else counts

    def _in_words(self, counts: Mapping[str, int]) -> str:
        return ", ".join(number_of(counts.get(name, 0), *words) for name, words in self.words.items())


@contextmanager
def snapshot(url: str, *, what: str) -> Iterator[Connection]:
    """Open a connection by which all is read as of one moment, while others write and do not wait.

    That is a transaction on PostgreSQL, and on SQLite a copy by its online backup: a reader of a file that has no
    write-ahead log, as MLflow's, would hold up who writes for as long as it reads. ``what`` names it in errors.

    Raises:
        StorageError: the file cannot be read, is damaged, or stays locked.
        UnreachableError: the server does not answer, or refuses us.
        UsageError: a database of another kind, or one without its driver.
    """
    file = sqlite_path(url)
    with errors(url, what=what):
        if file is None:
            with _opened(url) as engine:
                options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
                with engine.execution_options(**options).connect() as connection:
                    yield connection
            return
        with scratch() as folder:
            copied = folder / file.name
            check_space(str(folder), need_bytes=file.stat().st_size)
            _copy_online(file, copied)
            with _opened(sqlite_url(copied)) as engine, engine.connect() as connection:
                yield connection


@contextmanager
def writing(url: str, *, what: str) -> Iterator[Connection]:
    """Open a transaction that writes to an existing database: all of it is written at the end, or nothing.

    Raises: as ``snapshot``.
    """
    with errors(url, what=what), _opened(url) as engine, engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA foreign_keys = ON")
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # the driver's own comes after what is read first
        yield connection


@contextmanager
def new_file(file: Path, tables: Sequence[sa.Table], *, what: str) -> Iterator[Connection]:
    """Make a SQLite file that its owner alone may read, with these tables, and open a transaction that fills them.

    Raises:
        StorageError: it cannot be made.
    """
    url = sqlite_url(file)
    with errors(url, what=what):
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with _opened(url) as engine, engine.begin() as connection:
            for table in tables:
                connection.execute(sa.schema.CreateTable(table))  # no index: some are of one kind of database alone
            yield connection


@contextmanager
def errors(url: str, *, what: str) -> Iterator[None]:
    """Turn what a database raises into errors of ours, without the URL and without the statement."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{what} cannot be copied: {error.strerror or error}") from error
    except (sqlite3.Error, sa.exc.SQLAlchemyError) as error:
        inner = getattr(error, "orig", None) or error
        cause = (str(inner).strip().splitlines() or [type(inner).__name__])[0]
        server = sqlite_path(url) is None and isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)
        if server:
            hint = "Does the server run, and may this user connect, read and write?"
            raise UnreachableError(f"{what} does not answer: {cause}", hint=hint) from error
        raise StorageError(f"{what} cannot be copied: {cause}") from error


def copy_rows(
    source: Connection,
    target: Connection,
    tables: Sequence[sa.Table],
    *,
    change: Callable[[str, Any], Any] = lambda _table, value: value,
) -> dict[str, int]:
    """Copy all rows of tables, in the order of their references, and return how many of each.

    ``change`` gets the name of the table and each value, and returns what is written in its place.
    """
    counts = {}
    for table in tables:
        found = source.execute(sa.select(table).execution_options(stream_results=True)).mappings()
        counts[table.name] = 0
        for rows in found.partitions(BATCH_ROWS):
            changed = [{key: change(table.name, value) for key, value in row.items()} for row in rows]
            target.execute(sa.insert(table), changed)
            counts[table.name] += len(rows)
    _count_on(target, tables)
    return counts


def rows_in(connection: Connection, tables: Sequence[sa.Table]) -> dict[str, int]:
    """Return how many rows each table has, of those that have any; a table that is not there has none."""
    there = set(sa.inspect(connection).get_table_names())
    made = [table for table in tables if table.name in there]
    counts = {table.name: connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0 for table in made}
    return {name: count for name, count in counts.items() if count}


def moved_in(value: Any, move: Callable[[str], str]) -> Any:
    """Return a value of a row with each text in it replaced by ``move`` of it, also within JSON and JSON in a text."""
    if isinstance(value, dict):
        return {key: moved_in(item, move) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(moved_in(item, move) for item in value)
    if type(value) is not str:  # an enumeration's value is none, although it may be a text
        return value
    if value[:1] in {"{", "[", '"'}:
        try:
            data = json.loads(value)
        except ValueError:
            return value
        changed = moved_in(data, move)
        return value if changed == data else json.dumps(changed)
    return move(value)


@contextmanager
def _opened(url: str) -> Iterator[Engine]:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() not in {"sqlite", "postgresql"} or (
            parsed.get_backend_name() == "sqlite" and sqlite_path(url) is None
        ):
            raise UsageError(
                f"expected a SQLite file or a PostgreSQL database, got {parsed.get_backend_name()}",
                hint="Back up databases of other kinds by their own tools.",
            )
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        options = {"connect_timeout": 10} if parsed.get_backend_name() == "postgresql" else {"timeout": LOCKED_S}
        engine = sa.create_engine(parsed, poolclass=sa.NullPool, connect_args=options)
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError) as error:
        raise UsageError(f"not a usable SQL URL: {type(error).__name__}") from error
    except ModuleNotFoundError as error:
        hint = "pip install 'raymlops[postgres]'"
        raise UsageError(f"the Postgres driver {error.name} is not installed", hint=hint) from error
    try:
        yield engine
    finally:
        engine.dispose()


def _copy_online(file: Path, target: Path) -> None:
    """Copy a SQLite file by its online backup, in one step, which other processes' writes cannot restart."""
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    deadline = time.monotonic() + LOCKED_S

    def give_up(_status: int, left: int, _total: int) -> None:
        if left and time.monotonic() > deadline:
            raise sqlite3.OperationalError("database is locked")

    uri = f"{file.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=LOCKED_S)) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy, pages=-1, progress=give_up, sleep=0.05)


def _count_on(connection: Connection, tables: Sequence[sa.Table]) -> None:
    """Let PostgreSQL's sequences go on after the numbers that were written; SQLite counts from the highest anyway."""
    if connection.dialect.name != "postgresql":
        return
    for table in tables:
        for column in table.primary_key.columns:
            if not isinstance(column.type, sa.Integer):
                continue
            names = {"table": f'"{table.name}"', "column": column.name}
            sequence = connection.scalar(sa.text("SELECT pg_get_serial_sequence(:table, :column)"), names)
            newest = connection.scalar(sa.select(sa.func.max(column)))
            if sequence is not None and newest is not None:
                connection.execute(
                    sa.text("SELECT setval(:sequence, :newest)"), {"sequence": sequence, "newest": newest}
                )
