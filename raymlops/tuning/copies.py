"""Optuna's database in a backup: its tables in one SQLite file. The schema of both sides is this Optuna's."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from raymlops.config.paths import sqlite_url
from raymlops.display import number_of
from raymlops.errors import RefusedError
from raymlops.storage.tables import copy_rows, new_file, rows_in, same_keys, snapshot, writing
from raymlops.tuning.study.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WHAT = "Optuna's database"


def study_schema() -> tuple[str, str]:
    """Return the schema of this Optuna's tables, and which release it is."""
    import optuna
    from optuna.storages._rdb.models import SCHEMA_VERSION

    return str(SCHEMA_VERSION), f"optuna {optuna.__version__}"


def save_studies(url: str, file: Path) -> int:
    """Write Optuna's tables as of one moment into a new file, and return how many rows they have.

    Raises:
        StorageError: the database cannot be read or has another Optuna's tables, or the file cannot be written.
        UnreachableError, UsageError: as ``open_storage``.
    """
    with open_storage(url):  # which says what is wrong with it
        pass
    tables = _tables()
    with snapshot(url, what=WHAT) as source, new_file(file, tables, what=WHAT) as target:
        return sum(copy_rows(source, target, tables).values())


def studies_there(url: str, *, file: Path) -> str | None:
    """Return what is in a database, in words; None where that is nothing, or what a copy in ``file`` brings.

    Raises: as ``save_studies``.
    """
    with snapshot(url, what=WHAT) as there, snapshot(sqlite_url(file), what=WHAT) as source:
        counts = rows_in(there, _tables()) if sa.inspect(there).has_table("trials") else {}
        return _words(counts) if counts and not same_keys(source, there, _kept()) else None


def restore_studies(file: Path, url: str, *, change: Callable[[str], Any]) -> None:
    """Write the tables of a copy into an empty database, which is made where there is none, in one transaction.

    Nothing is done where the rows of the copy are there: a restore that was killed after it wrote them.

    Raises:
        RefusedError: the database is not empty; nothing was changed.
        StorageError, UnreachableError, UsageError: it cannot be written; nothing was changed.
    """
    with open_storage(url):
        pass
    with snapshot(sqlite_url(file), what=WHAT) as source, writing(url, what=WHAT) as target:
        if counts := rows_in(target, _tables()):
            if same_keys(source, target, _kept()):
                return
            raise RefusedError(f"{WHAT} is not empty: {_words(counts)}")
        copy_rows(source, target, _tables(), change=lambda _table, value: change(value))


@cache
def _tables() -> tuple[sa.Table, ...]:
    """Return the tables that travel, in the order of their references: not its row of versions, which each has."""
    from optuna.storages._rdb.models import BaseModel

    return tuple(table for table in BaseModel.metadata.sorted_tables if table.name != "version_info")


def _kept() -> list[sa.Table]:
    return [table for table in _tables() if table.name in {"studies", "trials"}]


def _words(counts: dict[str, int]) -> str:
    studies = number_of(counts.get("studies", 0), "study", "studies")
    return f"{studies} with {number_of(counts.get('trials', 0), 'trial')}"
