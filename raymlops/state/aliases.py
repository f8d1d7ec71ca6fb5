"""Aliases that are owed: of which model MLflow's ``champion`` is not known yet to be on the version that is live.

Owns that table. A debt is written in the transaction that makes a version live, so that a kill right after loses it
not. Knows nothing of MLflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from raymlops.state.schema import alias_debts as table
from raymlops.state.schema import deployments

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from raymlops.state.database import Database


def owe(connection: Connection, name: str, version: int) -> None:
    """Say that the alias of a model is to be set to a version; what was owed before is not any more."""
    connection.execute(sa.delete(table).where(table.c.name == name))
    connection.execute(sa.insert(table).values(name=name, version=version))


def owed(database: Database) -> list[tuple[str, int]]:
    """Return each model whose alias is owed, and the version to which it is to be set."""
    with database.reading() as connection:
        return [(row.name, row.version) for row in connection.execute(sa.select(table).order_by(table.c.name))]


def settle_alias(database: Database, name: str, version: int) -> None:
    """Say that the alias of a model was set to a version just now.

    Where another one is champion by then, the alias is owed to that: who was second to set it may not have been second
    to make its version live.
    """
    champion = sa.select(deployments.c.version).where(deployments.c.name == name, deployments.c.role == "champion")
    with database.writing() as connection:
        now = connection.scalar(champion)
        if now is None or now == version:
            connection.execute(sa.delete(table).where(table.c.name == name))
        else:
            owe(connection, name, now)
