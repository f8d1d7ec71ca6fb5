"""Bringing a database to the newest schema, or saying why not.

Owns the revision check and the run of alembic's scripts, in one transaction under a lock. Knows nothing of what the
tables mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from raymlops.errors import StorageError
from raymlops.state.schema import HEAD

if TYPE_CHECKING:
    from sqlalchemy import Connection

SCRIPTS = Path(__file__).parent / "migrations"
_LOCK = 7_206_517_311  # any number that is ours: Postgres' advisory locks share one space


def migrate(connection: Connection) -> None:
    """Upgrade the schema inside the connection's open write transaction; nothing where it is the newest already.

    Raises:
        StorageError: a newer raymlops has changed the schema.
    """
    if revision(connection) == HEAD:
        return
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    found = revision(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise StorageError(
            f"the state database has schema {found}, which a newer raymlops made; this one knows up to {HEAD}",
            hint="Upgrade raymlops: pip install -U raymlops.",
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def revision(connection: Connection) -> str | None:
    """Return the schema's revision, None for a database without our tables."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return found
