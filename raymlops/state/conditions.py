"""Conditions: why what is live is not as desired, since when, and when it is tried again.

Owns the record and its table: one per model, and one of all models. What is as desired has none.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from raymlops.records import Record
from raymlops.state.schema import conditions as table

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from raymlops.state.database import Database

EVERYTHING = ""
"""Name of the condition that holds for every model, such as a Serve that does not answer."""


@dataclass(frozen=True)
class Condition(Record):
    """Why a model stands still."""

    name: str
    reason: str
    since: datetime
    attempts: int = 0
    """How often it was tried again."""
    retry_at: datetime | None = None


def conditions(database: Database) -> dict[str, Condition]:
    """Return the conditions by model."""
    with database.reading() as connection:
        rows = connection.execute(sa.select(table)).mappings()
        return {row["name"]: Condition(**row) for row in rows}


def put_conditions(database: Database, wanted: Iterable[Condition]) -> None:
    """Replace the conditions; nothing is written if they are the same."""
    new = {condition.name: condition for condition in wanted}
    if new == conditions(database):
        return
    with database.writing() as connection:
        connection.execute(sa.delete(table))
        if new:
            connection.execute(sa.insert(table), [asdict(condition) for condition in new.values()])
