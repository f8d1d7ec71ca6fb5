"""The time that a version may take to come up, counted from when the reconciler starts it, instead of a deadline."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Replace the deadline; what is on its way starts again, with as much time as it had."""
    op.add_column("transitions", sa.Column("timeout_s", sa.Float, nullable=False, server_default="120"))
    op.add_column("transitions", sa.Column("started_at", sa.DateTime(timezone=True), nullable=True))
    times = (sa.column(name, sa.DateTime(timezone=True)) for name in ("began_at", "deadline_at"))
    old = sa.table("transitions", sa.column("name"), sa.column("version"), sa.column("timeout_s"), *times)
    connection = op.get_bind()
    for row in connection.execute(sa.select(old)).all():
        mine = (old.c.name == row.name) & (old.c.version == row.version)
        timeout_s = (row.deadline_at - row.began_at).total_seconds()
        connection.execute(sa.update(old).where(mine).values(timeout_s=timeout_s))
    with op.batch_alter_table("transitions") as table:
        table.drop_column("deadline_at")
