"""The tables, as the newest migration leaves them.

Owns the columns and the guarantees that the database itself keeps: one champion a name, an audit that is only
added to. Knows nothing of connections. A change here needs a migration and a new ``HEAD``.
"""

from __future__ import annotations

import sqlalchemy as sa

HEAD = "0001"
"""Revision of the newest migration; a test holds it equal to the newest file."""

metadata = sa.MetaData()

deployments = sa.Table(
    "deployments",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("bundle_uri", sa.Text, nullable=False),
    sa.Column("run_id", sa.String(64), nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("serve", sa.JSON, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
    sa.CheckConstraint("role IN ('champion', 'warm')", name="deployments_role"),
)
sa.Index(
    "deployments_one_champion",
    deployments.c.name,
    unique=True,
    sqlite_where=deployments.c.role == "champion",
    postgresql_where=deployments.c.role == "champion",
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("ts", sa.DateTime(timezone=True), nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("before", sa.JSON, nullable=True),
    sa.Column("after", sa.JSON, nullable=True),
    sa.Column("why", sa.Text, nullable=False),
    sa.Index("audit_subject", "subject"),
)
