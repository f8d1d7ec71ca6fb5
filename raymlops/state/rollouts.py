"""Rollouts: which version is on its way to which share of the traffic, and what became of those before it.

Owns the record and its table. Every function takes a connection, so that a rollout, the deployments that it moves and
the audit event are one transaction. Knows nothing of what moves a rollout.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from raymlops.errors import NotFoundError, RefusedError
from raymlops.records import Record
from raymlops.state.schema import rollouts as table

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection

    from raymlops.state.database import Database

STARTED = "rollout.start"
"""Action of the audit event by which one begins; its reason names the retraining that began it, if one did."""

RolloutStatus = Literal["running", "promoted", "aborted", "stopped"]


@dataclass(frozen=True)
class Rollout(Record):
    """A version on its way from its first share of the traffic to the route."""

    id: str
    name: str
    version: int
    champion: int
    """The version that it is compared with."""
    steps: tuple[float, ...]
    """Shares of the traffic, 0 to 1, rising."""
    step: int
    """Index of the step that it is at."""
    status: RolloutStatus
    """``stopped`` is by a person, or by another change of the deployments."""
    settings: dict[str, Any]
    """``serve.rollout`` as it was when it started."""
    started_at: datetime
    step_started_at: datetime
    ended_at: datetime | None = None
    evidence: dict[str, Any] = field(default_factory=dict)
    """What the last decision rests on, and its numbers."""
    reason: str = ""
    """Of the last decision, in a sentence."""

    @property
    def weight(self) -> float:
        """Return its share of the traffic at this step."""
        return self.steps[self.step]


def start_rollout(connection: Connection, rollout: Rollout) -> None:
    """Add a rollout.

    Raises:
        RefusedError: one of the same model is running, which the message names; nothing was changed.
    """
    if found := running(connection, rollout.name):
        raise _refused(found[0])
    try:
        # In a transaction of its own, so that the outer one can still be asked who came first.
        with connection.begin_nested():
            connection.execute(sa.insert(table), asdict(rollout))
    except sa.exc.IntegrityError:
        if found := running(connection, rollout.name):
            raise _refused(found[0]) from None
        raise


def update_rollout(connection: Connection, rollout: Rollout) -> None:
    """Replace a running rollout by what became of it.

    Raises:
        NotFoundError: no rollout has this id.
        RefusedError: it has ended or reached a later step meanwhile, which decisions on an outdated reading change not.
    """
    same = (table.c.id == rollout.id, table.c.status == "running", table.c.step <= rollout.step)
    if connection.execute(sa.update(table).where(*same).values(asdict(rollout))).rowcount:
        return
    found = connection.execute(sa.select(table.c.status, table.c.step).where(table.c.id == rollout.id)).one_or_none()
    if found is None:
        raise NotFoundError(f"there is no rollout {rollout.id}")
    now = f"is at step {found.step + 1}" if found.status == "running" else f"has ended: it is {found.status}"
    raise RefusedError(f"the rollout {rollout.id} of {rollout.name} {now}")


def running(connection: Connection, name: str | None = None) -> list[Rollout]:
    """Return the rollouts that run, by model: all, or the one of a model, if any."""
    query = sa.select(table).where(table.c.status == "running").order_by(table.c.name)
    return _read(connection, query, name)


def rollouts(
    connection: Connection, name: str | None = None, *, version: int | None = None, limit: int | None = None
) -> list[Rollout]:
    """Return rollouts, newest first: all, or those of a model or a version; ``limit`` keeps the newest ones only."""
    query = sa.select(table).order_by(table.c.started_at.desc(), table.c.id.desc()).limit(limit)
    return _read(connection, query if version is None else query.where(table.c.version == version), name)


def newest_rollout(database: Database, name: str, version: int | None = None) -> Rollout | None:
    """Return the newest rollout of a model, or of one of its versions; None without one."""
    with database.reading() as connection:
        return next(iter(rollouts(connection, name, version=version, limit=1)), None)


def rollout_of(database: Database, name: str, rollout_id: str) -> Rollout:
    """Return a rollout of a model by its id.

    Raises:
        NotFoundError: it does not exist.
    """
    with database.reading() as connection:
        found = _read(connection, sa.select(table).where(table.c.id == rollout_id), name)
    if not found:
        raise NotFoundError(f"{name} has no rollout {rollout_id}")
    return found[0]


def _read(connection: Connection, query: sa.Select[Any], name: str | None) -> list[Rollout]:
    if name is not None:
        query = query.where(table.c.name == name)
    return [Rollout(**row) for row in connection.execute(query).mappings()]


def _refused(found: Rollout) -> RefusedError:
    return RefusedError(
        f"version {found.version} of {found.name} is being rolled out since {found.started_at:%Y-%m-%d %H:%M} UTC "
        f"(rollout {found.id}, at {100 * found.weight:g} percent)",
        hint="Wait until it ends, or end it first: raymlops rollback, or deploy with --abort.",
    )
