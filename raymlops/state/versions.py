"""Model versions as this state recorded them: their bundles and the verdicts of the gate.

Owns the record, its table, and each change of it with its audit event in one transaction. MLflow shows the same as
tags of a version, which every writer of MLflow can change; code is loaded and deployed by what is recorded here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from raymlops.errors import RefusedError
from raymlops.records import BundleRef, Record
from raymlops.state.audit import add_event
from raymlops.state.schema import audit, deployments, from_row, to_row
from raymlops.state.schema import versions as table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy import Connection

    from raymlops.records import ModelVersionRef
    from raymlops.state.database import Database

Verdict = Literal["passed", "refused"]
_GATED = ("gate.pass", "gate.refuse")


@dataclass(frozen=True)
class VersionRecord(Record):
    """One version, whose ``bundle`` was made here, or adopted by the person who gated it here."""

    name: str
    version: int
    run_id: str
    bundle: BundleRef
    recorded_at: datetime
    verdict: Verdict | None = None
    """Of the gate; None before it decided."""
    decided_at: datetime | None = None
    withdrawn: str | None = None
    """Why it was taken back from traffic, by a rollback or an aborted rollout; None unless it was."""

    def is_of(self, ref: ModelVersionRef | VersionRecord) -> bool:
        """Return whether this is a record of the same bundle, at the same place and of the same run."""
        return (self.bundle, self.run_id) == (ref.bundle, ref.run_id)


def recorded(database: Database, name: str, version: int) -> VersionRecord | None:
    """Return the record of a version; None without one."""
    with database.reading() as connection:
        return _read(connection, name, version)


def registered_of(database: Database, name: str, run_id: str) -> VersionRecord | None:
    """Return the newest version of a model that was registered of a run; None without one."""
    query = sa.select(table).where(table.c.name == name, table.c.run_id == run_id)
    with database.reading() as connection:
        row = connection.execute(query.order_by(table.c.version.desc()).limit(1)).mappings().one_or_none()
    return None if row is None else VersionRecord(**from_row(row))


def decision_of(database: Database, name: str, version: int) -> dict[str, Any]:
    """Return the newest decision of the gate on a version, as its audit event has it; empty without one."""
    query = sa.select(audit.c.after).where(audit.c.subject == f"{name}/{version}", audit.c.action.in_(_GATED))
    with database.reading() as connection:
        found = connection.scalar(query.order_by(audit.c.id.desc()).limit(1))
    return dict(found or {})


def bundle_uris_of(database: Database, name: str) -> list[tuple[int, str]]:
    """Return a model's recorded versions and where their bundles are, oldest version first."""
    query = sa.select(table.c.version, table.c.bundle_uri).where(table.c.name == name).order_by(table.c.version)
    with database.reading() as connection:
        return [(row.version, row.bundle_uri) for row in connection.execute(query)]


def record_version(database: Database, ref: ModelVersionRef, *, why: str, now: datetime) -> None:
    """Record a version whose bundle was made here; do nothing if it is recorded already.

    A verdict stays where only the place of the bundle is another one.

    Raises:
        RefusedError: another bundle is deployed under this number; nothing was changed.
        StorageError, UnreachableError: the database cannot be written; nothing was changed.
    """
    with database.writing() as connection:
        before = _read(connection, ref.name, ref.version)
        if before is not None and before.is_of(ref):
            return
        _refuse_another(connection, ref)
        if before is not None and (before.bundle.digest, before.run_id) == (ref.bundle.digest, ref.run_id):
            after = replace(before, bundle=ref.bundle)
        else:
            after = VersionRecord(ref.name, ref.version, ref.run_id, ref.bundle, now)
        _put(connection, after)
        _event(connection, "register", ref, before=before, after=ref.to_dict(), why=why)


def record_verdict(
    database: Database,
    ref: ModelVersionRef,
    *,
    seen: VersionRecord | None,
    passed: bool,
    decision: Mapping[str, Any],
    why: str,
    now: datetime,
) -> None:
    """Record the gate's verdict on a version, and adopt its bundle if ``seen``, the record so far, has another one.

    Raises:
        RefusedError: another process recorded the version meanwhile, or another bundle is deployed under this number;
            nothing was changed.
        StorageError, UnreachableError: the database cannot be written; nothing was changed.
    """
    with database.writing() as connection:
        before = _read(connection, ref.name, ref.version)
        same = before is seen if before is None or seen is None else before.is_of(seen)
        if not same:
            raise RefusedError(
                f"{ref.name} version {ref.version} was recorded by another process while the gate decided",
                hint="Run the same command again.",
            )
        adopted = before is None or not before.is_of(ref)
        if adopted:
            _refuse_another(connection, ref)
        recorded_at = now if before is None or adopted else before.recorded_at
        verdict: Verdict = "passed" if passed else "refused"
        withdrawn = None if before is None or adopted else before.withdrawn
        after = VersionRecord(ref.name, ref.version, ref.run_id, ref.bundle, recorded_at, verdict, now, withdrawn)
        _put(connection, after)
        if adopted:
            adoption = f"digest {ref.bundle.digest} was named to adopt"
            _event(connection, "adopt", ref, before=before, after=ref.to_dict(), why=adoption)
        after_gate = {**decision, "digest": ref.bundle.digest}
        _event(connection, _GATED[not passed], ref, before=None, after=after_gate, why=why)


def withdraw(connection: Connection, name: str, version: int, why: str | None) -> None:
    """Record in the transaction of a change that it took a version back from traffic; None if it brings it back."""
    mine = (table.c.name == name) & (table.c.version == version)
    connection.execute(sa.update(table).where(mine).values(withdrawn=why))


def withdrawn(database: Database, name: str) -> set[int]:
    """Return the versions of a model that were taken back from traffic."""
    query = sa.select(table.c.version).where(table.c.name == name, table.c.withdrawn.is_not(None))
    with database.reading() as connection:
        return set(connection.scalars(query))


def _refuse_another(connection: Connection, ref: ModelVersionRef) -> None:
    """Refuse a bundle under a number that another one is deployed by: replicas of both would be one version."""
    query = sa.select(deployments.c.digest).where(
        deployments.c.name == ref.name, deployments.c.version == ref.version, deployments.c.digest != ref.bundle.digest
    )
    if (digest := connection.scalar(query)) is not None:
        raise RefusedError(
            f"version {ref.version} of {ref.name} is deployed here with digest {digest}, not {ref.bundle.digest}",
            hint="Register the other bundle under a number of its own, or take this one down first: "
            f"raymlops deploy {ref.name} --remove",
        )


def _read(connection: Connection, name: str, version: int) -> VersionRecord | None:
    query = sa.select(table).where(table.c.name == name, table.c.version == version)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else VersionRecord(**from_row(row))


def _put(connection: Connection, record: VersionRecord) -> None:
    connection.execute(sa.delete(table).where(table.c.name == record.name, table.c.version == record.version))
    connection.execute(sa.insert(table), to_row(record))


def _event(
    connection: Connection, action: str, ref: ModelVersionRef, *, before: VersionRecord | None, after: Any, why: str
) -> None:
    subject = f"{ref.name}/{ref.version}"
    add_event(
        connection,
        action=action,
        subject=subject,
        before=None if before is None else before.to_dict(),
        after=after,
        why=why,
    )
