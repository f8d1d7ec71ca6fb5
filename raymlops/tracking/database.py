"""MLflow's database: which SQLite file a URL names, making it whole or not at all, and whose schema one has.

MLflow builds its tables over some seconds and some fifty migrations. A process killed meanwhile leaves a file that no
MLflow opens again, so the file is made under another name and takes its own when it is done.
"""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from raymlops.config.credentials import redact
from raymlops.config.paths import sqlite_path, sqlite_url
from raymlops.errors import TrackingError

if TYPE_CHECKING:
    from pathlib import Path

    import sqlalchemy as sa

_REVISION = "alembic_version"


def database_file(uri: str) -> Path | None:
    """Return the file of a SQLite URL, absolute; None for any other database and for one in memory."""
    file = sqlite_path(uri)
    return None if file is None else file.absolute()


def ensure_database(path: Path, *, artifacts: str) -> None:
    """Create the MLflow database at ``path`` unless it exists. Safe in several processes at once."""
    if path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    temporary = path.with_name(_temporary(path, os.getpid()))
    try:
        SqlAlchemyStore(sqlite_url(temporary), artifacts).engine.dispose()
        # A link, unlike a rename, does not replace what another process finished first.
        with suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        for left in path.parent.glob(f"{temporary.name}*"):
            left.unlink()


def _temporary(path: Path, pid: int | str) -> str:
    # The folder may be shared, and a process number means something on its own machine only.
    return f".{path.name}.{socket.gethostname()}.{pid}.tmp"


def _sweep(path: Path) -> None:
    """Remove what killed processes of this machine left."""
    import psutil  # type: ignore[import-untyped, unused-ignore]

    pattern = re.compile(re.escape(_temporary(path, "PID")).replace("PID", r"(\d+)"))
    for left in path.parent.iterdir():
        match = pattern.match(left.name)
        if match and not psutil.pid_exists(int(match[1])):
            left.unlink(missing_ok=True)


def unmade(connection: sa.Connection) -> bool:
    """Return whether MLflow has made no tables yet, or was killed after those that it begins with: they are empty then.

    Its client makes the rest. PostgreSQL has either those alone or all of them, since a migration is one transaction.
    """
    import sqlalchemy as sa
    from mlflow.store.tracking.dbmodels.initial_models import Base

    there, first = set(sa.inspect(connection).get_table_names()), Base.metadata.tables
    if there - first.keys() - {_REVISION}:
        return False
    rows = [sa.table(_REVISION)] if _REVISION in there else []
    rows += [table for name, table in first.items() if name in there]
    return not any(connection.scalar(sa.select(sa.exists().select_from(table))) for table in rows)


def check_schema(uri: str) -> None:
    """Refuse a database of another MLflow version before its client opens it, which could upgrade it unasked.

    Raises:
        TrackingError: it has another schema.
    """
    import mlflow
    import sqlalchemy as sa
    from alembic.runtime.migration import MigrationContext
    from mlflow.store.db.utils import _get_latest_schema_revision

    with sa.create_engine(uri, poolclass=sa.NullPool).connect() as connection:
        if unmade(connection):
            return
        found = MigrationContext.configure(connection).get_current_revision()
    expected = _get_latest_schema_revision()
    if found != expected:
        raise TrackingError(
            f"the MLflow database {redact(uri)} has the schema {found or 'unknown'}, "
            f"but MLflow {mlflow.__version__} needs {expected}",
            hint=f"Back it up, then run: mlflow db upgrade {redact(uri)}",
        )
