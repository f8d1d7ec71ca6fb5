"""Verdicts on windows of traffic, what is normal from when on, incidents and messages, and how versions are watched."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Make the four tables, with the index that allows one open incident a cause; each deployment has its settings."""
    time = sa.DateTime(timezone=True)
    op.add_column("deployments", sa.Column("monitor", sa.JSON, nullable=False, server_default="{}"))
    op.create_table(
        "drift_windows",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("side", sa.String(16), primary_key=True),
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("start", time, primary_key=True),
        sa.Column("stop", time, primary_key=True),
        sa.Column("judged_by", sa.Integer, nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("against", sa.Text, nullable=True),
        sa.Column("p_one", sa.Float, nullable=True),
        sa.Column("p_two", sa.Float, nullable=True),
        sa.Column("details", sa.JSON, nullable=False),
        sa.Column("incident", sa.String(32), nullable=True),
        sa.Column("judged_at", time, nullable=False),
    )
    op.create_index("drift_windows_newest", "drift_windows", ["name", "start"])
    op.create_index("drift_windows_incident", "drift_windows", ["incident", "start"])
    op.create_table(
        "drift_baselines",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("side", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("start", time, nullable=False),
        sa.Column("columns", sa.JSON, nullable=True),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("made_at", time, nullable=False),
    )
    op.create_index("drift_baselines_name", "drift_baselines", ["name"])
    op.create_table(
        "incidents",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("side", sa.String(16), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("opened_at", time, nullable=False),
        sa.Column("last_at", time, nullable=False),
        sa.Column("windows", sa.Integer, nullable=False),
        sa.Column("columns", sa.JSON, nullable=False),
        sa.Column("closed_at", time, nullable=True),
        sa.Column("acknowledged_at", time, nullable=True),
        sa.Column("acknowledged_by", sa.Text, nullable=True),
        sa.Column("acknowledged_why", sa.Text, nullable=True),
    )
    still = sa.text("closed_at IS NULL")
    op.create_index(
        "incidents_one_open",
        "incidents",
        ["name", "side", "kind", "version"],
        unique=True,
        sqlite_where=still,
        postgresql_where=still,
    )
    op.create_table(
        "messages",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("incident", sa.String(32), nullable=False),
        sa.Column("what", sa.String(16), nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created_at", time, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("retry_at", time, nullable=True),
        sa.Column("sent_at", time, nullable=True),
        sa.Column("last_error", sa.Text, nullable=True),
        sa.Column("reached", sa.JSON, nullable=False),
    )
    op.create_index("messages_incident", "messages", ["incident"])
