"""Optuna's database in a backup: its tables in one SQLite file. The schema of both sides is this Optuna's."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from raymlops.storage.tables import TableSet, copy_rows, new_file, snapshot
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
    tables = study_tables().tables
    with snapshot(url, what=WHAT) as source, new_file(file, tables, what=WHAT) as target:
        return sum(copy_rows(source, target, tables).values())


def restore_studies(file: Path, url: str, *, backup: str, change: Callable[[str, Any], Any]) -> None:
    """Write the tables of a copy into an empty database, which is made where there is none: ``TableSet.restore``.

    Raises: as there.
    """
    with open_storage(url):
        pass
    study_tables().restore(file, url, backup=backup, change=change)


@cache
def study_tables() -> TableSet:
    """Return the tables that travel: not its row of versions, which each has."""
    from optuna.storages._rdb.models import BaseModel

    found = tuple(table for table in BaseModel.metadata.sorted_tables if table.name != "version_info")
    return TableSet(WHAT, found, {"studies": ("study", "studies"), "trials": ("trial",)})
