"""Who this database is."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

from raymlops.state.engine import this_user

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the table with its one row: an id of chance, so that an empty database at the same place has another."""
    table = op.create_table(
        "identity",
        sa.Column("slot", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("made_by", sa.Text, nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("slot = 1", name="identity_one_row"),
    )
    row = {"slot": 1, "id": str(uuid.uuid4()), "made_by": this_user(), "made_at": datetime.now(UTC)}
    op.bulk_insert(table, [row])
