"""API keys: who may call which model, for how long, how often. Only hashes are kept.

Owns the records and their table. Knows nothing of requests: a replica gets the hashes as part of its settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from raymlops.records import Record
from raymlops.state.engine import aware
from raymlops.state.schema import api_keys

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection


@dataclass(frozen=True)
class KeyRecord(Record):
    """One key, without its secret."""

    id: str
    name: str
    hash: str
    """SHA-256 of the secret, in hex. The secret has 256 random bits, so that no slow hash is needed."""
    models: tuple[str, ...]
    """Names of models; ``*`` is every one."""
    scopes: tuple[str, ...]
    """``predict``, ``feedback``, ``pin``."""
    rate_per_s: float | None
    """Requests a second, a replica; None for no limit."""
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


def keys_in(connection: Connection, *, now: datetime) -> list[KeyRecord]:
    """Return the keys that are good at ``now``: neither revoked nor expired."""
    query = sa.select(api_keys).where(api_keys.c.revoked_at.is_(None)).order_by(api_keys.c.id)
    found = [_key(row) for row in connection.execute(query)]
    return [key for key in found if key.expires_at is None or key.expires_at > now]


def _key(row: Any) -> KeyRecord:
    data = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name
    times = {
        name: None if data[name] is None else aware(data[name]) for name in ("created_at", "expires_at", "revoked_at")
    }
    return KeyRecord(**{**data, "models": tuple(data["models"]), "scopes": tuple(data["scopes"]), **times})
