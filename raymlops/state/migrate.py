"""Migrate a database to the newest schema, from nothing if it is new.

Owns the revision check and the run of alembic's scripts, in one transaction under a lock. Knows nothing of what the
tables mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from raymlops.errors import StorageError
from raymlops.state.schema import HEAD, VERSION_TABLE, deployments

if TYPE_CHECKING:
    from sqlalchemy import Connection

SCRIPTS = Path(__file__).parent / "migrations"
_LOCK = 7_206_517_311  # any number that is ours: Postgres' advisory locks share one space
_SHARED_TABLE = "alembic_version"
"""Table of our revision before 0.2, under the name that Optuna and MLflow use too."""


def is_newest(connection: Connection) -> bool:
    """Return whether there is nothing to migrate."""
    return _revision_in(connection, VERSION_TABLE) == HEAD


def migrate(connection: Connection) -> None:
    """Upgrade the schema inside the connection's open write transaction; do nothing if it is the newest.

    Raises:
        StorageError: a newer raymlops has changed the schema.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    if is_newest(connection):
        return
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    found = _revision_in(connection, VERSION_TABLE)
    shared = _revision_in(connection, _SHARED_TABLE)
    if found is None and shared is not None and sa.inspect(connection).has_table(deployments.name):
        connection.execute(sa.text(f"ALTER TABLE {_SHARED_TABLE} RENAME TO {VERSION_TABLE}"))
        found = shared
    if found is not None:
        check_known(found, what="the state database")
    command.upgrade(config, "head")


def check_known(schema: str, *, what: str) -> None:
    """Refuse a schema that is none of those that were made up to this release.

    Raises:
        StorageError: a newer raymlops made it.
    """
    from alembic.script import ScriptDirectory

    if schema != HEAD and schema not in {script.revision for script in ScriptDirectory(str(SCRIPTS)).walk_revisions()}:
        raise StorageError(
            f"{what} has schema {schema}, which a newer raymlops made; this one knows up to {HEAD}",
            hint="Upgrade raymlops: pip install -U raymlops.",
        )


def _revision_in(connection: Connection, table: str) -> str | None:
    """Return the revision that a version table holds; None without the table or a row."""
    if not sa.inspect(connection).has_table(table):
        return None
    found: str | None = connection.scalar(sa.text(f"SELECT version_num FROM {table}"))  # noqa: S608 - our own names
    return found
