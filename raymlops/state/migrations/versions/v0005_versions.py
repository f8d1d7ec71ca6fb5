"""Model versions: whose digest, place and verdict count."""

from __future__ import annotations

import re
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_SHA256 = re.compile(r"[0-9a-f]{64}")


def upgrade() -> None:
    """Make the table, and take over the versions of which the audit and what is deployed say the same."""
    versions = op.create_table(
        "versions",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("bundle_uri", sa.Text, nullable=False),
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("verdict IN ('passed', 'refused')", name="versions_verdict"),
    )
    if rows := _known(op.get_bind()):
        op.bulk_insert(versions, rows)


def _known(connection: Any) -> list[dict[str, Any]]:
    """Return the versions that were registered from here, with the verdict of the gate since.

    A version that is deployed with another digest is left out. One whose bundle was moved has its place from there.
    """
    audit = sa.table(
        "audit",
        sa.column("id", sa.BigInteger),
        sa.column("ts", sa.DateTime(timezone=True)),
        sa.column("action", sa.String),
        sa.column("subject", sa.Text),
        sa.column("after", sa.JSON),
    )
    deployments = sa.table("deployments", *map(sa.column, ("name", "version", "digest", "bundle_uri")))
    found: dict[tuple[str, int], dict[str, Any]] = {}
    told = sa.select(audit).where(audit.c.action.in_(["register", "gate.pass", "gate.refuse"])).order_by(audit.c.id)
    for event in connection.execute(told):
        name, _, version = event.subject.rpartition("/")
        if not version.isdecimal():
            continue
        key = (name, int(version))
        if event.action == "register":
            row = _registered(key, event)
            if row is not None and row["digest"] != found.get(key, {}).get("digest"):
                found[key] = row
        elif key in found:
            found[key]["verdict"] = "passed" if event.action == "gate.pass" else "refused"
            found[key]["decided_at"] = event.ts
    for live in connection.execute(sa.select(deployments)):
        row = found.get((live.name, live.version))
        if row is not None and row["digest"] != live.digest:
            del found[live.name, live.version]
        elif row is not None:
            row["bundle_uri"] = live.bundle_uri
    return list(found.values())


def _registered(key: tuple[str, int], event: Any) -> dict[str, Any] | None:
    after = event.after if isinstance(event.after, dict) else {}
    bundle = after.get("bundle") or {}
    digest, uri, run_id = str(bundle.get("digest")), bundle.get("uri"), str(after.get("run_id"))
    if not uri or not _SHA256.fullmatch(digest) or len(key[0]) > 63 or len(run_id) > 64:
        return None
    return {
        "name": key[0],
        "version": key[1],
        "digest": digest,
        "bundle_uri": uri,
        "run_id": run_id,
        "recorded_at": event.ts,
        "verdict": None,
        "decided_at": None,
    }
