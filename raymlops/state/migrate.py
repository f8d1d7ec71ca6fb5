"""Create the tables of a new database, or migrate an existing one to the newest schema.

Owns the revision check and the run of alembic's scripts, in one transaction under a lock. Knows nothing of what the
tables mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from raymlops.errors import StorageError
from raymlops.state.schema import HEAD, VERSION_TABLE, create_tables, deployments

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
    """Create or upgrade the schema inside the connection's open write transaction; do nothing if it is the newest.

    Raises:
        StorageError: this raymlops does not know the database's schema, which a newer one made.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    if is_newest(connection):
        return
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    found = _revision_in(connection, VERSION_TABLE)
    if found is None and sa.inspect(connection).has_table(deployments.name):
        connection.execute(sa.text(f"ALTER TABLE {_SHARED_TABLE} RENAME TO {VERSION_TABLE}"))
        found = _revision_in(connection, VERSION_TABLE)
    if found is None:
        create_tables(connection)
        command.stamp(config, "head")
        return
    if found not in {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}:
        raise StorageError(
            f"the state database has schema {found}, which this raymlops does not know; it knows up to {HEAD}",
            hint="Upgrade raymlops: pip install -U raymlops.",
        )
    command.upgrade(config, "head")


def _revision_in(connection: Connection, table: str) -> str | None:
    """Return the revision that a version table holds; None without the table or a row."""
    if not sa.inspect(connection).has_table(table):
        return None
    found: str | None = connection.scalar(sa.text(f"SELECT version_num FROM {table}"))  # noqa: S608 - our own names
    return found
