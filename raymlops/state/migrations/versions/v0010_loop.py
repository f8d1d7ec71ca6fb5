"""Retrainings and freezes of models, and with which policy each version was deployed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0008"


def upgrade() -> None:
    """Make both tables, with the indexes that allow one open retraining and one freeze a model."""
    time = sa.DateTime(timezone=True)
    still = sa.text("ended_at IS NULL")
    op.add_column("deployments", sa.Column("retrain", sa.JSON, nullable=False, server_default="{}"))
    op.create_table(
        "retrainings",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("champion", sa.Integer, nullable=False),
        sa.Column("champion_run_id", sa.String(64), nullable=False),
        sa.Column("trigger", sa.String(16), nullable=False),
        sa.Column("evidence", sa.Text, nullable=False),
        sa.Column("evidence_at", time, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("reasons", sa.JSON, nullable=False),
        sa.Column("settings", sa.JSON, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("stages", sa.JSON, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("made_at", time, nullable=False),
        sa.Column("stage_at", time, nullable=False),
        sa.Column("ended_at", time, nullable=True),
        sa.Column("submission_id", sa.String(128), nullable=True),
        sa.Column("run_id", sa.String(64), nullable=True),
        sa.Column("version", sa.Integer, nullable=True),
        sa.Column("rollout_id", sa.String(32), nullable=True),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("found", sa.JSON, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
    )
    op.create_index("retrainings_name", "retrainings", ["name", "made_at"])
    op.create_index(
        "retrainings_one_open", "retrainings", ["name"], unique=True, sqlite_where=still, postgresql_where=still
    )
    op.create_table(
        "freezes",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("made_at", time, nullable=False),
        sa.Column("until", time, nullable=True),
        sa.Column("ended_at", time, nullable=True),
        sa.Column("ended_by", sa.Text, nullable=True),
        sa.Column("ended_why", sa.Text, nullable=True),
    )
    op.create_index("freezes_one_open", "freezes", ["name"], unique=True, sqlite_where=still, postgresql_where=still)
