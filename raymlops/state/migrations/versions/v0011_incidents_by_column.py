"""Incidents of one column, or of one bound, each."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
_TIMES = ("opened_at", "last_at", "closed_at", "acknowledged_at")


def upgrade() -> None:
    """Split each incident by its columns.

    Of an open incident that got worse, columns may never have been in a message: all after the first count as untold.
    """
    time, connection = sa.DateTime(timezone=True), op.get_bind()
    old = [dict(row) for row in connection.execute(sa.text("SELECT * FROM incidents")).mappings()]
    op.drop_table("incidents")
    table = op.create_table(
        "incidents",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("side", sa.String(16), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("opened_at", time, nullable=False),
        sa.Column("last_at", time, nullable=False),
        sa.Column("windows", sa.Integer, nullable=False),
        sa.Column("column", sa.Text, nullable=False),
        sa.Column("quiet_s", sa.Float, nullable=False),
        sa.Column("closed_at", time, nullable=True),
        sa.Column("closed_why", sa.Text, nullable=False),
        sa.Column("acknowledged_at", time, nullable=True),
        sa.Column("acknowledged_by", sa.Text, nullable=True),
        sa.Column("acknowledged_why", sa.Text, nullable=True),
        sa.Column("thread", sa.String(32), nullable=True),
        sa.Column("told", sa.String(16), nullable=False),
    )
    still = sa.text("closed_at IS NULL")
    cause = ["name", "side", "kind", "version", "column"]
    op.create_index("incidents_one_open", "incidents", cause, unique=True, sqlite_where=still, postgresql_where=still)
    for row in old:
        columns = row.pop("columns")
        for at, column in enumerate(json.loads(columns) if isinstance(columns, str) else columns):
            connection.execute(sa.insert(table), _split(row, at, column))
    op.drop_index("drift_windows_incident", "drift_windows")
    op.drop_column("drift_windows", "incident")


def _split(row: dict[str, Any], at: int, column: str) -> dict[str, Any]:
    """Return the incident of one column; SQLite's times are texts."""
    untold = at > 0 and row["closed_at"] is None and row["kind"] != "skew"
    told = "closed" if row["closed_at"] else "acknowledged" if row["acknowledged_at"] else "opened"
    times = {key: datetime.fromisoformat(row[key]) if isinstance(row[key], str) else row[key] for key in _TIMES}
    return {
        **row,
        **{key: value and value.replace(tzinfo=value.tzinfo or UTC) for key, value in times.items()},
        "id": row["id"] if at == 0 else f"{row['id'][:26]}-{at}",
        "column": column,
        "quiet_s": 0.0,
        "closed_why": "",
        "thread": None if untold else row["id"],
        "told": "" if untold else told,
    }
