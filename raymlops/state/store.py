"""The desired state: what should be live, and who changed it when and why.

A change and its audit event are one transaction: both are written or neither. Knows nothing of Serve or MLflow.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Self

import sqlalchemy as sa

from raymlops.errors import UsageError
from raymlops.records import BundleRef, Record
from raymlops.state.audit import AuditEvent, add_event, changes_of, events_in, now
from raymlops.state.database import Database
from raymlops.state.identity import AuditedHistory, Owner, owner_in
from raymlops.state.keys import KeyRecord, keys_in
from raymlops.state.schema import audit, deployments, from_row, rollouts, to_row

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Connection


Role = Literal["champion", "warm"]


@dataclass(frozen=True)
class Deployment(Record):
    """A model version that should be live. The ``champion`` holds the route; a ``warm`` one is on standby."""

    name: str
    version: int
    bundle: BundleRef
    run_id: str
    role: Role
    serve: dict[str, Any] = field(default_factory=dict)
    """Fields of the ``serve`` section."""
    weight: float = 0.0
    """Of a warm version: share of the traffic that it answers as a canary, 0 to 1. The champion has the rest."""
    shadow: float = 0.0
    """Of a warm version: share of the requests of which it gets a copy, 0 to 1."""
    created_at: datetime = field(default_factory=now, compare=False)
    """When this version was first deployed; kept while it stays, and no part of what makes two deployments equal."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a deployment, as an audit event holds it."""
        fields = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
        fields["bundle"] = BundleRef.from_dict(data["bundle"])
        if "created_at" in fields:
            fields["created_at"] = datetime.fromisoformat(fields["created_at"])
        return cls(**fields)


@dataclass(frozen=True)
class Desired:
    """All that should be live: the deployments of every model, and the API keys that are good for them."""

    deployments: tuple[Deployment, ...] = ()
    keys: tuple[KeyRecord, ...] = ()
    epochs: Mapping[str, str] = field(default_factory=dict)
    """Of each model with a running rollout: which step of which one, so that counts of two are never mixed."""
    owner: Owner = field(default_factory=Owner)
    """The state database that desires it."""

    def without(self, name: str) -> Desired:
        """Return it without the deployments of one model."""
        return replace(self, deployments=tuple(item for item in self.deployments if item.name != name))

    def plus(self, deployments: Sequence[Deployment]) -> Desired:
        """Return it with more deployments."""
        return replace(self, deployments=(*self.deployments, *deployments))


class State(Database):
    """The state database and what should be live by it. Use as a context manager, or call ``close``."""

    def desired(self) -> Desired:
        """Return all that should be live, read in one transaction."""
        with self.reading() as connection:
            found = tuple(deployments_in(connection))
            steps = sa.select(rollouts.c.name, rollouts.c.id, rollouts.c.step).where(rollouts.c.status == "running")
            epochs = {row.name: f"{row.id}.{row.step}" for row in connection.execute(steps)}
            owner = owner_in(connection, AuditedHistory(self))
            return Desired(found, tuple(keys_in(connection, now=now())), epochs, owner)

    def owner(self) -> Owner:
        """Return the identity of this database."""
        with self.reading() as connection:
            return owner_in(connection, AuditedHistory(self))

    def deployments(self, name: str | None = None) -> list[Deployment]:
        """Return what should be live, of one model or of all, by name and version."""
        with self.reading() as connection:
            return deployments_in(connection, name)

    def put_deployments(
        self,
        changes: Mapping[str, Sequence[Deployment]],
        *,
        actor: str | None = None,
        action: str,
        why: str,
        also: Callable[[Connection], None] | None = None,
    ) -> dict[str, list[Deployment]]:
        """Replace the deployments of each named model and return what they were, for taking the change back.

        ``changes`` maps a model's name to all its deployments from now on; an empty list removes it. Other models
        stay as they are. Each name gets one audit event in the same transaction. ``also`` is called within it, for what
        belongs to the change, such as its rollout.

        Raises:
            UsageError: two champions of one model, one version twice, or a deployment under another model's name.
            StorageError, UnreachableError: the database cannot be written; nothing was changed.
        """
        for name, wanted in changes.items():
            _check(name, wanted)
        previous: dict[str, list[Deployment]] = {}
        with self.writing() as connection:
            for name, wanted in changes.items():
                before = deployments_in(connection, name)
                previous[name] = before
                since = {item.version: item.created_at for item in before}
                after = [replace(item, created_at=since.get(item.version, item.created_at)) for item in wanted]
                connection.execute(sa.delete(deployments).where(deployments.c.name == name))
                if after:
                    connection.execute(sa.insert(deployments), [to_row(item) for item in after])
                add_event(
                    connection,
                    actor=actor,
                    action=action,
                    subject=name,
                    before=[item.to_dict() for item in before],
                    after=[item.to_dict() for item in after],
                    why=why,
                )
            if also is not None:
                also(connection)
        return previous

    def record(
        self,
        *,
        action: str,
        subject: str,
        before: Any = None,
        after: Any = None,
        why: str = "",
        actor: str | None = None,
    ) -> None:
        """Add an audit event for something that changed elsewhere. ``actor`` defaults to this user on this host."""
        with self.writing() as connection:
            add_event(connection, actor=actor, action=action, subject=subject, before=before, after=after, why=why)

    def events(self, name: str | None = None, *, limit: int | None = None) -> list[AuditEvent]:
        """Return the audit events, newest first: all, or those of a model (``NAME``, ``NAME/VERSION``) and of API keys.

        ``limit`` keeps the newest ones only.
        """
        query = sa.select(audit)
        if name is not None:
            mine = audit.c.subject.startswith(f"{name}/", autoescape=True)
            keys = audit.c.subject.startswith("api-key:")
            query = query.where((audit.c.subject == name) | mine | keys)
        with self.reading() as connection:
            return events_in(connection, query.limit(limit))

    def changes(self, name: str) -> list[AuditEvent]:
        """Return the changes of a model's deployments, newest first; before and after are lists of deployments."""
        return list(changes_of(self, name))


def deployments_in(connection: Connection, name: str | None = None) -> list[Deployment]:
    """Return what should be live, of one model or of all, by name and version."""
    query = sa.select(deployments).order_by(deployments.c.name, deployments.c.version)
    if name is not None:
        query = query.where(deployments.c.name == name)
    return [Deployment(**from_row(row)) for row in connection.execute(query).mappings()]


def _check(name: str, wanted: Sequence[Deployment]) -> None:
    if strangers := [item.name for item in wanted if item.name != name]:
        raise UsageError(f"a deployment of {strangers[0]!r} does not belong to {name!r}")
    versions = [item.version for item in wanted]
    if len(set(versions)) != len(versions):
        raise UsageError(f"{name}: one version is given twice, got {versions}")
    shares = [item.weight for item in wanted] + [item.shadow for item in wanted]
    if not all(0 <= share <= 1 for share in shares) or sum(item.weight for item in wanted) > 1:
        raise UsageError(f"{name}: weights are shares that add up to at most 1, got {shares}")
    champions = [item.version for item in wanted if item.role == "champion"]
    if len(champions) > 1:
        raise UsageError(f"{name}: one champion at a time, got versions {champions}")
