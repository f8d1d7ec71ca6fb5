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
from raymlops.state.audit import AuditEvent, about, add_event, events_in, now
from raymlops.state.database import Database
from raymlops.state.freezes import Freeze, freeze_in
from raymlops.state.identity import AuditedHistory, Owner, owner_in
from raymlops.state.keys import KeyRecord, keys_in
from raymlops.state.loop import Retraining, bake_epoch, baking_in, retrainings_in
from raymlops.state.rollouts import STARTED, Rollout, running, start_rollout, update_rollout
from raymlops.state.schema import audit, deployments, from_row, to_row
from raymlops.state.transitions import Transition, given_up_in, put_transition, transitions_in
from raymlops.state.versions import withdraw
from raymlops.state.watch.incidents import Incident, incidents_in
from raymlops.state.watch.windows import BROKEN
from raymlops.storage import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from sqlalchemy import Connection

    from raymlops.state.database import Given


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
    monitor: dict[str, Any] = field(default_factory=dict)
    """Fields of the ``monitor`` section."""
    retrain: dict[str, Any] = field(default_factory=dict)
    """Fields of the ``retrain`` section."""
    created_at: datetime = field(default_factory=clock.now, compare=False)
    """When this version was first deployed; kept while it stays, and no part of what makes two deployments equal."""

    @property
    def replaces(self) -> bool:
        """Return whether it has no room beside another version of its model, which ends before it starts."""
        return self.serve.get("update") == "replace"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a deployment, as an audit event holds it."""
        fields = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
        fields["bundle"] = BundleRef.from_dict(data["bundle"])
        if "created_at" in fields:
            fields["created_at"] = datetime.fromisoformat(fields["created_at"])
        return cls(**fields)


@dataclass(frozen=True)
class Model:
    """What is desired of one model."""

    name: str
    deployments: tuple[Deployment, ...] = ()
    rollout: Rollout | None = None
    """The running one. A change may return it as ended."""
    transitions: tuple[Transition, ...] = ()
    """The running ones, oldest first. A change may return one as ended."""
    freeze: Freeze | None = None
    """Of the loop, that nobody ended; it may be over by its own time."""
    retraining: Retraining | None = None
    """That has not ended."""
    incidents: tuple[Incident, ...] = ()
    """Open ones by which what is served is broken, newest first."""
    rollout_why: str = ""
    """Why the running rollout was begun, as its audit event says."""

    def item(self, version: int) -> Deployment | None:
        """Return the deployment of a version."""
        return next((item for item in self.deployments if item.version == version), None)

    def transition(self, transition_id: str) -> Transition | None:
        """Return a transition by its id."""
        return next((one for one in self.transitions if one.id == transition_id), None)

    @property
    def coming(self) -> tuple[Transition, ...]:
        """Return the running transitions."""
        return tuple(transition for transition in self.transitions if transition.status == "running")


@dataclass(frozen=True)
class Change:
    """What is desired of a model from now on, and what the audit record says of it."""

    model: Model
    action: str
    why: str
    withdraws: Mapping[int, str | None] = field(default_factory=dict)
    """Versions that it takes back from traffic, and why; None for one that it brings back."""


@dataclass(frozen=True)
class Desired:
    """All that should be live: the deployments of every model, and the API keys that are good for them."""

    deployments: tuple[Deployment, ...] = ()
    keys: tuple[KeyRecord, ...] = ()
    epochs: Mapping[str, str] = field(default_factory=dict)
    """Of each model with a running rollout: which step of which one, so that counts of two are never mixed. Of one
    whose retrained version bakes: of which retraining."""
    coming: tuple[Transition, ...] = ()
    """The running transitions, oldest first."""
    owner: Owner = field(default_factory=Owner)
    """The state database that desires it."""
    given_up: tuple[Transition, ...] = ()
    """What was to replace a version and did not, one a version at most: what they started may still be ending."""
    slow_s: Mapping[str, float] = field(default_factory=dict)
    """Of each model with a running rollout: ``serve.rollout.slow_s`` as it was when it started."""


class State(Database):
    """The state database and what should be live by it. Use as a context manager, or call ``close``."""

    def now(self) -> datetime:
        """Return the time by the clock of the database."""
        with self.reading() as connection:
            return now(connection)

    def desired(self) -> Desired:
        """Return all that should be live, read in one transaction."""
        with self.reading() as connection:
            found = tuple(deployments_in(connection))
            rollouts = running(connection)
            epochs = {one.name: bake_epoch(one) for one in baking_in(connection)}
            epochs |= {rollout.name: f"{rollout.id}.{rollout.step}" for rollout in rollouts}
            slow_s = {one.name: one.settings["slow_s"] for one in rollouts if "slow_s" in one.settings}
            coming = tuple(transitions_in(connection))
            given_up = tuple(given_up_in(connection))
            owner = owner_in(connection, AuditedHistory(self))
            keys = tuple(keys_in(connection, now=now(connection)))
            return Desired(found, keys, epochs, coming, owner, given_up, slow_s)

    def owner(self) -> Owner:
        """Return the identity of this database."""
        with self.reading() as connection:
            return owner_in(connection, AuditedHistory(self))

    def deployments(self, name: str | None = None) -> list[Deployment]:
        """Return what should be live, of one model or of all, by name and version."""
        with self.reading() as connection:
            return deployments_in(connection, name)

    def model(self, name: str) -> Model:
        """Return what is desired of one model, read in one transaction."""
        with self.reading() as connection:
            return model_in(connection, name)

    def change(
        self,
        name: str,
        decide: Callable[[Model], Change],
        *,
        actor: str | None = None,
        given: Given | None = None,
    ) -> tuple[Model, Model]:
        """Change what is desired of one model, with its audit event, in one transaction; return it before and after.

        ``decide`` gets what is desired, which no other writer changes meanwhile. Without a difference, nothing is
        written. A transition that is done is no change: its event is that of what its version got. ``given`` raises
        where something else that the change rests on is otherwise.

        Raises:
            UsageError: two champions, one version twice, or a deployment under another model's name.
            RefusedError: a rollout that was to be changed has ended.
            StorageError, UnreachableError: the database cannot be written; nothing was changed.
            RaymlopsError: of ``decide`` or ``given``; nothing was changed.
        """
        with self.writing() as connection:
            if given is not None:
                given(connection)
            before = model_in(connection, name)
            change = decide(before)
            after = _dated(change.model, before)
            if after == before:
                return before, before
            _check(name, after.deployments)
            if after.deployments != before.deployments:
                _replace(connection, name, after.deployments)
            if before.rollout is None and after.rollout is not None:
                start_rollout(connection, after.rollout)
            elif after.rollout is not None and after.rollout != before.rollout:
                update_rollout(connection, after.rollout)
            moved = [one for one in after.transitions if one not in before.transitions]
            for transition in moved:
                put_transition(connection, transition)
            for version, why in change.withdraws.items():
                withdraw(connection, name, version, why)
            same = (after.deployments, after.rollout) == (before.deployments, before.rollout)
            if not same or any(transition.status != "done" for transition in moved):
                add_event(
                    connection,
                    actor=actor,
                    action=change.action,
                    subject=name,
                    before=[item.to_dict() for item in before.deployments],
                    after=[item.to_dict() for item in after.deployments],
                    why=change.why,
                )
        return before, after

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

    def events(
        self,
        name: str | None = None,
        *,
        since: datetime | None = None,
        actions: Collection[str] = (),
        limit: int | None = None,
    ) -> list[AuditEvent]:
        """Return the audit events, newest first: all, or those of a model (``NAME``, ``NAME/VERSION``) and of API keys.

        ``since`` a time, or by some ``actions``; ``limit`` keeps the newest ones only.
        """
        query = sa.select(audit)
        if since is not None:
            query = query.where(audit.c.ts >= since)
        if actions:
            query = query.where(audit.c.action.in_(actions))
        if name is not None:
            query = query.where(about(name) | audit.c.subject.startswith("api-key:"))
        with self.reading() as connection:
            return events_in(connection, query.limit(limit))


def deployments_in(connection: Connection, name: str | None = None) -> list[Deployment]:
    """Return what should be live, of one model or of all, by name and version."""
    query = sa.select(deployments).order_by(deployments.c.name, deployments.c.version)
    if name is not None:
        query = query.where(deployments.c.name == name)
    return [Deployment(**from_row(row)) for row in connection.execute(query).mappings()]


def model_in(connection: Connection, name: str) -> Model:
    """Return what is desired and in progress of a model, as ``State.model``."""
    begun = sa.select(audit.c.why).where(audit.c.subject == name, audit.c.action == STARTED)
    rollout = next(iter(running(connection, name)), None)
    return Model(
        name,
        tuple(deployments_in(connection, name)),
        rollout,
        tuple(transitions_in(connection, name)),
        freeze_in(connection, name),
        next(iter(retrainings_in(connection, name, open_only=True)), None),
        tuple(one for one in incidents_in(connection, name, open_only=True) if one.kind in BROKEN),
        connection.scalar(begun.order_by(audit.c.id.desc()).limit(1)) or "" if rollout is not None else "",
    )


def _dated(model: Model, before: Model) -> Model:
    """Return a model of which each version that stays keeps its date."""
    since = {item.version: item.created_at for item in before.deployments}
    items = (replace(item, created_at=since.get(item.version, item.created_at)) for item in model.deployments)
    return replace(model, deployments=tuple(items))


def _replace(connection: Connection, name: str, wanted: Sequence[Deployment]) -> None:
    connection.execute(sa.delete(deployments).where(deployments.c.name == name))
    if wanted:
        connection.execute(sa.insert(deployments), [to_row(item) for item in wanted])


def _check(name: str, wanted: Sequence[Deployment]) -> None:
    if strangers := [item.name for item in wanted if item.name != name]:
        raise UsageError(f"a deployment of {strangers[0]!r} does not belong to {name!r}")
    versions = [item.version for item in wanted]
    if len(set(versions)) != len(versions):
        raise UsageError(f"{name}: one version is given twice, got {versions}")
    shares = [item.weight for item in wanted] + [item.shadow for item in wanted]
    if not all(0 <= share <= 1 for share in shares) or sum(item.weight for item in wanted) > 1 + 1e-9:
        raise UsageError(f"{name}: weights are shares that add up to at most 1, got {shares}")
    champions = [item.version for item in wanted if item.role == "champion"]
    if len(champions) > 1:
        raise UsageError(f"{name}: one champion at a time, got versions {champions}")
