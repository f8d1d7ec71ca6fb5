"""Audit events: who changed what, when, from what to what, and why.

An event is written in the transaction of its change.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from raymlops.records import Record
from raymlops.state.engine import this_user
from raymlops.state.schema import audit

if TYPE_CHECKING:
    from sqlalchemy import Connection


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class AuditEvent(Record):
    """One change: who, when, what, from what to what, and why."""

    id: int
    ts: datetime
    actor: str
    action: str
    subject: str
    before: Any
    after: Any
    why: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {**asdict(self), "ts": self.ts.isoformat()}


def add_event(
    connection: Connection,
    *,
    action: str,
    subject: str,
    before: Any = None,
    after: Any = None,
    why: str = "",
    actor: str | None = None,
) -> None:
    """Add an audit event within a transaction; ``actor`` defaults to this user on this host."""
    values = {"before": before, "after": after, "why": why, "action": action, "subject": subject}
    connection.execute(sa.insert(audit).values(ts=_now(), actor=actor or this_user(), **values))
