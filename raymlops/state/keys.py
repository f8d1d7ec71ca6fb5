"""API keys: who may call which model, for how long, how often. Only hashes are kept.

Owns the records and their table, what a secret is made of, and every change of a key with its audit event, in which
there is neither secret nor hash. Knows nothing of requests: a replica gets the hashes as part of its settings.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from pydantic import TypeAdapter, ValidationError

from raymlops.config.base import Name
from raymlops.errors import NotFoundError, RefusedError, UsageError
from raymlops.records import Record
from raymlops.state.audit import add_event
from raymlops.state.schema import api_keys

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from raymlops.state.database import Database

SCOPES = ("predict", "feedback", "pin")
EVERY_MODEL = "*"

_SECRET = re.compile(r"rk_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_NAME = re.compile(r"(?!rk_)[A-Za-z0-9](?:[A-Za-z0-9._@ -]{0,198}[A-Za-z0-9._@-])?")
_ID = re.compile(r"[0-9a-f]{12}")
_MODEL_NAME: TypeAdapter[str] = TypeAdapter(Name)


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

    def status(self, now: datetime) -> Literal["good", "expired", "revoked"]:
        """Return whether the key opens anything at ``now``, and why not."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "good"

    def opens(self, model: str) -> bool:
        """Return whether the key is for this model."""
        return EVERY_MODEL in self.models or model in self.models

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data for people and the audit: all but the hash."""
        return {name: value for name, value in super().to_dict().items() if name != "hash"}


def keys_in(connection: Connection, *, now: datetime) -> list[KeyRecord]:
    """Return the keys that are good at ``now``: neither revoked nor expired."""
    query = sa.select(api_keys).where(api_keys.c.revoked_at.is_(None)).order_by(api_keys.c.id)
    return [key for key in _keys(connection, query) if key.status(now) == "good"]


def list_keys(database: Database) -> list[KeyRecord]:
    """Return all keys, also expired and revoked ones, oldest first."""
    query = sa.select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id)
    with database.reading() as connection:
        return _keys(connection, query)


def create_key(
    database: Database,
    *,
    name: str,
    models: Sequence[str],
    scopes: Sequence[str] = ("predict", "feedback"),
    rate_per_s: float | None = None,
    expires_at: datetime | None = None,
    now: datetime,
    actor: str | None = None,
) -> tuple[KeyRecord, str]:
    """Make a key and return it with its secret, which is kept nowhere.

    ``name`` says who holds it, and is one good key's at a time. ``models`` are names, or ``*`` for every model.

    Raises:
        UsageError: a name, model, scope, rate or time that cannot be; or a good key has the name.
        StorageError, UnreachableError: the database cannot be written; there is no key.
    """
    _check_name(name)
    if rate_per_s is not None and not 0 < rate_per_s < math.inf:
        raise UsageError(f"a rate is a number of requests a second above 0, got {rate_per_s}")
    if expires_at is not None and expires_at <= now:
        raise UsageError(f"a key cannot expire before it is made: got {expires_at:%Y-%m-%d %H:%M:%S}")
    key, secret = _made(
        KeyRecord(
            id="",
            name=name,
            hash="",
            models=_models(models),
            scopes=_scopes(scopes),
            rate_per_s=rate_per_s,
            created_at=now,
            expires_at=expires_at,
            revoked_at=None,
        )
    )
    with database.writing() as connection:
        if namesakes := _good(connection, name, now):
            raise UsageError(
                f"{name!r} has a key already: {namesakes[0].id}",
                hint=f"Replace it with raymlops keys rotate {namesakes[0].id}, or choose another name.",
            )
        connection.execute(sa.insert(api_keys), asdict(key))
        _event(connection, "key.create", key, before=None, why=f"requested for {name!r}", actor=actor)
    return key, secret


def revoke_key(
    database: Database, id_or_name: str, *, now: datetime, actor: str | None = None, why: str = "requested"
) -> KeyRecord:
    """Revoke a key and return it; a revoked one stays as it is, without another event.

    A whole secret counts as its id, so that a leaked one can be revoked as it was found.

    Raises:
        NotFoundError: there is no such key.
        UsageError: the name has several good keys; the message has their ids.
    """
    with database.writing() as connection:
        before = _find(connection, id_or_name, now)
        if before.revoked_at is not None:
            return before
        after = replace(before, revoked_at=now)
        connection.execute(sa.update(api_keys).where(api_keys.c.id == after.id).values(revoked_at=now))
        _event(connection, "key.revoke", after, before=before, why=why, actor=actor)
    return after


def rotate_key(
    database: Database, id_or_name: str, *, grace_s: float, now: datetime, actor: str | None = None
) -> tuple[KeyRecord, str, KeyRecord]:
    """Make a key with the name and rights of another, and let that one expire after ``grace_s``, or when it would have.

    Return the new key, its secret and the old key. A key that was to expire is replaced by one with the same lifetime.

    Raises:
        NotFoundError: there is no such key.
        UsageError: the name has several good keys; or the grace is no time.
        RefusedError: the key is revoked or has expired.
    """
    if not math.isfinite(grace_s) or grace_s < 0:
        raise UsageError(f"the grace must be 0 seconds or more, got {grace_s}")
    with database.writing() as connection:
        before = _find(connection, id_or_name, now)
        if (status := before.status(now)) != "good":
            raise RefusedError(
                f"the key {before.id} of {before.name!r} is {status}; there is nothing to rotate",
                hint="raymlops keys create makes a new one.",
            )
        lasting = None if before.expires_at is None else now + (before.expires_at - before.created_at)
        new, secret = _made(replace(before, created_at=now, expires_at=lasting))
        ends = now + timedelta(seconds=grace_s)
        old = replace(before, expires_at=ends if before.expires_at is None else min(ends, before.expires_at))
        connection.execute(sa.insert(api_keys), asdict(new))
        connection.execute(sa.update(api_keys).where(api_keys.c.id == old.id).values(expires_at=old.expires_at))
        _event(connection, "key.rotate", old, before=before, why=f"replaced by {new.id}", actor=actor)
        _event(connection, "key.create", new, before=None, why=f"replaces {old.id}", actor=actor)
    return new, secret, old


def _made(key: KeyRecord) -> tuple[KeyRecord, str]:
    """Give a key an id and a secret. The id is in the secret, so that a replica finds the one hash to compare with."""
    key_id = secrets.token_hex(6)
    secret = f"rk_{key_id}_{secrets.token_urlsafe(32)}"
    return replace(key, id=key_id, hash=hashlib.sha256(secret.encode()).hexdigest()), secret


def _find(connection: Connection, id_or_name: str, now: datetime) -> KeyRecord:
    secret = _SECRET.fullmatch(id_or_name)
    wanted = secret[1] if secret else id_or_name
    if by_id := _keys(connection, sa.select(api_keys).where(api_keys.c.id == wanted)):
        return by_id[0]
    found = _good(connection, wanted, now)
    if not found:
        shown = "that secret" if wanted.startswith("rk_") else repr(wanted[:60])
        raise NotFoundError(f"no good key has the id or name {shown}", hint="raymlops keys list")
    if len(found) > 1:
        ids = ", ".join(f"{key.id} (of {key.created_at:%Y-%m-%d %H:%M} UTC)" for key in found)
        raise UsageError(f"{wanted!r} has {len(found)} good keys: {ids}", hint="Name one by its id.")
    return found[0]


def _good(connection: Connection, name: str, now: datetime) -> list[KeyRecord]:
    return [key for key in keys_in(connection, now=now) if key.name == name]


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or _ID.fullmatch(name):
        shown = "a text that starts like a secret" if name.startswith("rk_") else repr(name[:60])
        raise UsageError(
            f"a key's name says who holds it, got {shown}; allowed are 1 to 200 of letters, digits, space and . _ @ -, "
            "starting with a letter or digit, and not what could be a key's id"
        )


def _models(models: Sequence[str]) -> tuple[str, ...]:
    if not models:
        raise UsageError("a key is for one model at least, or for * (every one)")
    for model in models:
        try:
            if model != EVERY_MODEL:
                _MODEL_NAME.validate_python(model)
        except ValidationError as error:
            raise UsageError(f"a key's model: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
    return tuple(sorted(set(models)))


def _scopes(scopes: Sequence[str]) -> tuple[str, ...]:
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise UsageError(f"a key's scopes are some of {', '.join(SCOPES)}; got {', '.join(unknown) or 'none'}"[:300])
    return tuple(scope for scope in SCOPES if scope in scopes)


def _event(
    connection: Connection, action: str, key: KeyRecord, *, before: KeyRecord | None, why: str, actor: str | None
) -> None:
    add_event(
        connection,
        action=action,
        subject=f"api-key:{key.id}",
        before=None if before is None else before.to_dict(),
        after=key.to_dict(),
        why=why,
        actor=actor,
    )


def _keys(connection: Connection, query: sa.Select[Any]) -> list[KeyRecord]:
    return [KeyRecord(**row) for row in connection.execute(query).mappings()]
