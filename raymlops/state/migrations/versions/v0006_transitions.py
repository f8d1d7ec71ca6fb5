"""Versions that come up, why what is live is not as desired, the cluster, and versions taken back.

Aliases are compared with MLflow instead of owed.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make both tables and the columns, and drop the table of owed aliases."""
    op.create_table(
        "transitions",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("goal", sa.JSON, nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("began_as", sa.String(64), nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("began_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("hurry", sa.Boolean, nullable=False),
        sa.Column("restores", sa.JSON, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_table(
        "conditions",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("retry_at", sa.DateTime(timezone=True), nullable=True),
    )
    op.drop_table("alias_debts")
    op.add_column("versions", sa.Column("withdrawn", sa.Text, nullable=True))
    op.add_column("identity", sa.Column("cluster", sa.String(64), nullable=True))
