"""The tables, as the newest migration leaves them.

Owns the columns and the guarantees that the database itself keeps: one champion and one running rollout a name, one
verdict a window, one open incident a cause, one open retraining and one freeze a model, an append-only audit. Knows
nothing of connections. A change here needs a migration and a new ``HEAD``.
"""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from raymlops.records import BundleRef
from raymlops.storage import clock

if TYPE_CHECKING:
    from sqlalchemy import RowMapping

HEAD = "0011"
"""Revision of the newest migration; a test holds it equal to the newest file."""

VERSION_TABLE = "raymlops_version"
"""Where alembic keeps our revision: a table of its own, so that Optuna or MLflow may share the database."""


class Time(sa.TypeDecorator[datetime]):
    """A time in UTC, with its zone, which SQLite does not store."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002
        """Return a stored time with its zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class _Tuple(sa.TypeDecorator[tuple[Any, ...]]):
    """A tuple, stored as a JSON list."""

    impl = sa.JSON
    cache_ok = True

    def process_result_value(self, value: list[Any] | None, dialect: sa.Dialect) -> tuple[Any, ...] | None:  # noqa: ARG002
        return None if value is None else tuple(value)


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
    sa.Column("created_at", Time, nullable=False),
    sa.Column("updated_at", Time, nullable=False, default=clock.now),
    sa.Column("weight", sa.Float, nullable=False, server_default="0"),
    sa.Column("shadow", sa.Float, nullable=False, server_default="0"),
    sa.Column("monitor", sa.JSON, nullable=False, server_default="{}"),
    sa.Column("retrain", sa.JSON, nullable=False, server_default="{}"),
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
    sa.Column("ts", Time, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("before", sa.JSON, nullable=True),
    sa.Column("after", sa.JSON, nullable=True),
    sa.Column("why", sa.Text, nullable=False),
    sa.Index("audit_subject", "subject"),
)

transitions = sa.Table(
    "transitions",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("id", sa.String(32), nullable=False),
    sa.Column("goal", sa.JSON, nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("began_as", sa.String(64), nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("began_at", Time, nullable=False),
    sa.Column("timeout_s", sa.Float, nullable=False, server_default="120"),
    sa.Column("started_at", Time, nullable=True),
    sa.Column("hurry", sa.Boolean, nullable=False),
    sa.Column("restores", sa.JSON, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)

conditions = sa.Table(
    "conditions",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("since", Time, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("retry_at", Time, nullable=True),
)

identity = sa.Table(
    "identity",
    metadata,
    sa.Column("slot", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("id", sa.String(36), nullable=False),
    sa.Column("made_by", sa.Text, nullable=False),
    sa.Column("made_at", Time, nullable=False),
    sa.Column("cluster", sa.String(64), nullable=True),
    sa.CheckConstraint("slot = 1", name="identity_one_row"),
)

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("bundle_uri", sa.Text, nullable=False),
    sa.Column("run_id", sa.String(64), nullable=False),
    sa.Column("recorded_at", Time, nullable=False),
    sa.Column("verdict", sa.String(16), nullable=True),
    sa.Column("decided_at", Time, nullable=True),
    sa.Column("withdrawn", sa.Text, nullable=True),
    sa.CheckConstraint("verdict IN ('passed', 'refused')", name="versions_verdict"),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("models", _Tuple, nullable=False),
    sa.Column("scopes", _Tuple, nullable=False),
    sa.Column("rate_per_s", sa.Float, nullable=True),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("expires_at", Time, nullable=True),
    sa.Column("revoked_at", Time, nullable=True),
)

rollouts = sa.Table(
    "rollouts",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(63), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("champion", sa.Integer, nullable=False),
    sa.Column("steps", _Tuple, nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("settings", sa.JSON, nullable=False),
    sa.Column("evidence", sa.JSON, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("started_at", Time, nullable=False),
    sa.Column("step_started_at", Time, nullable=False),
    sa.Column("ended_at", Time, nullable=True),
)
sa.Index(
    "rollouts_one_running",
    rollouts.c.name,
    unique=True,
    sqlite_where=rollouts.c.status == "running",
    postgresql_where=rollouts.c.status == "running",
)

drift_windows = sa.Table(
    "drift_windows",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("side", sa.String(16), primary_key=True),
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("start", Time, primary_key=True),
    sa.Column("stop", Time, primary_key=True),
    sa.Column("judged_by", sa.Integer, nullable=False),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("against", sa.Text, nullable=True),
    sa.Column("p_one", sa.Float, nullable=True),
    sa.Column("p_two", sa.Float, nullable=True),
    sa.Column("details", sa.JSON, nullable=False),
    sa.Column("judged_at", Time, nullable=False),
    sa.Index("drift_windows_newest", "name", "start"),
)

drift_baselines = sa.Table(
    "drift_baselines",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("name", sa.String(63), nullable=False),
    sa.Column("side", sa.String(16), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("start", Time, nullable=False),
    sa.Column("columns", _Tuple, nullable=True),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("made_at", Time, nullable=False),
    sa.Index("drift_baselines_name", "name"),
)

incidents = sa.Table(
    "incidents",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(63), nullable=False),
    sa.Column("side", sa.String(16), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("opened_at", Time, nullable=False),
    sa.Column("last_at", Time, nullable=False),
    sa.Column("windows", sa.Integer, nullable=False),
    sa.Column("column", sa.Text, nullable=False),
    sa.Column("quiet_s", sa.Float, nullable=False),
    sa.Column("closed_at", Time, nullable=True),
    sa.Column("closed_why", sa.Text, nullable=False),
    sa.Column("acknowledged_at", Time, nullable=True),
    sa.Column("acknowledged_by", sa.Text, nullable=True),
    sa.Column("acknowledged_why", sa.Text, nullable=True),
    sa.Column("thread", sa.String(32), nullable=True),
    sa.Column("told", sa.String(16), nullable=False),
)
sa.Index(
    "incidents_one_open",
    incidents.c.name,
    incidents.c.side,
    incidents.c.kind,
    incidents.c.version,
    incidents.c.column,
    unique=True,
    sqlite_where=incidents.c.closed_at.is_(None),
    postgresql_where=incidents.c.closed_at.is_(None),
)

messages = sa.Table(
    "messages",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("incident", sa.String(32), nullable=False),
    sa.Column("what", sa.String(16), nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("retry_at", Time, nullable=True),
    sa.Column("sent_at", Time, nullable=True),
    sa.Column("last_error", sa.Text, nullable=True),
    sa.Column("reached", _Tuple, nullable=False),
    sa.Index("messages_incident", "incident"),
)

retrainings = sa.Table(
    "retrainings",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(63), nullable=False),
    sa.Column("champion", sa.Integer, nullable=False),
    sa.Column("champion_run_id", sa.String(64), nullable=False),
    sa.Column("trigger", sa.String(16), nullable=False),
    sa.Column("evidence", sa.Text, nullable=False),
    sa.Column("evidence_at", Time, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("reasons", sa.JSON, nullable=False),
    sa.Column("settings", sa.JSON, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("stage", sa.String(16), nullable=False),
    sa.Column("stages", _Tuple, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("made_at", Time, nullable=False),
    sa.Column("stage_at", Time, nullable=False),
    sa.Column("ended_at", Time, nullable=True),
    sa.Column("submission_id", sa.String(128), nullable=True),
    sa.Column("run_id", sa.String(64), nullable=True),
    sa.Column("version", sa.Integer, nullable=True),
    sa.Column("rollout_id", sa.String(32), nullable=True),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("found", sa.JSON, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Index("retrainings_name", "name", "made_at"),
)
sa.Index(
    "retrainings_one_open",
    retrainings.c.name,
    unique=True,
    sqlite_where=retrainings.c.ended_at.is_(None),
    postgresql_where=retrainings.c.ended_at.is_(None),
)

freezes = sa.Table(
    "freezes",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("name", sa.String(63), nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("made_at", Time, nullable=False),
    sa.Column("until", Time, nullable=True),
    sa.Column("ended_at", Time, nullable=True),
    sa.Column("ended_by", sa.Text, nullable=True),
    sa.Column("ended_why", sa.Text, nullable=True),
)
sa.Index(
    "freezes_one_open",
    freezes.c.name,
    unique=True,
    sqlite_where=freezes.c.ended_at.is_(None),
    postgresql_where=freezes.c.ended_at.is_(None),
)


def to_row(record: Any) -> dict[str, Any]:
    """Return a record with a ``bundle`` as the columns of its table."""
    row = {item.name: getattr(record, item.name) for item in fields(record)}
    bundle = row.pop("bundle")
    return {**row, "digest": bundle.digest, "bundle_uri": bundle.uri}


def from_row(row: RowMapping) -> dict[str, Any]:
    """Return the fields of a record with a ``bundle`` from the columns of its table."""
    data = {name: value for name, value in row.items() if name not in {"digest", "bundle_uri", "updated_at"}}
    return {**data, "bundle": BundleRef(uri=row["bundle_uri"], digest=row["digest"])}
