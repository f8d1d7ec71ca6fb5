"""The time that a version may take to come up, counted from when the reconciler starts it, instead of a deadline."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Replace the deadline; what is on its way starts anew."""
    op.add_column("transitions", sa.Column("timeout_s", sa.Float, nullable=False, server_default="120"))
    op.add_column("transitions", sa.Column("started_at", sa.DateTime(timezone=True), nullable=True))
    with op.batch_alter_table("transitions") as table:
        table.drop_column("deadline_at")
