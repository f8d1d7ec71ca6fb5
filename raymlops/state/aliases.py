"""Pending alias updates: models whose alias ``champion`` in MLflow may not yet point to the live version.

Owns their table. A row is written in the transaction that makes a version live, so that a kill right after does not
lose it. Knows nothing of MLflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from raymlops.state.schema import alias_debts as table
from raymlops.state.schema import deployments

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from raymlops.state.database import Database


def add_pending_alias(connection: Connection, name: str, version: int) -> None:
    """Record that the alias of a model is to be set to a version, in place of an earlier pending update."""
    connection.execute(sa.delete(table).where(table.c.name == name))
    connection.execute(sa.insert(table).values(name=name, version=version))


def pending_aliases(database: Database) -> list[tuple[str, int]]:
    """Return each model with a pending alias update, and the version to set it to."""
    with database.reading() as connection:
        return [(row.name, row.version) for row in connection.execute(sa.select(table).order_by(table.c.name))]


def complete_alias(database: Database, name: str, version: int) -> None:
    """Record that the alias of a model was set to a version just now.

    If another version is champion by then, the update to that one becomes pending: aliases may be set in another order
    than versions went live.
    """
    champion = sa.select(deployments.c.version).where(deployments.c.name == name, deployments.c.role == "champion")
    with database.writing() as connection:
        live = connection.scalar(champion)
        if live is None or live == version:
            connection.execute(sa.delete(table).where(table.c.name == name))
        else:
            add_pending_alias(connection, name, live)
