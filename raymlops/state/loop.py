"""Retrainings of models, stage by stage.

Owns the records and their table. A retraining is there once, by its state and what triggered it: its id is derived
from these, so that two controllers write the same, and two states never do. Each change of it is a compare-and-set of
its revision, in one transaction with the audit event and the message that somebody is to get. Knows nothing of when a
model is to be retrained, nor of what moves it on.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import sqlalchemy as sa

from raymlops.errors import NotFoundError, RefusedError
from raymlops.records import Record
from raymlops.state.audit import add_event
from raymlops.state.freezes import freeze_in
from raymlops.state.schema import messages, retrainings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy import Connection

    from raymlops.state.database import Database, Given
    from raymlops.state.watch.messages import Message

Trigger = Literal["skill", "min_skill", "drift", "schedule", "labels", "person"]
Stage = Literal[
    "decided",
    "proposed",
    "checking",
    "training",
    "gating",
    "replaying",
    "rolling_out",
    "baking",
    "done",
    "stopped",
    "rejected",
    "taken_back",
]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""In the order in which a retraining passes them; the last four end it."""
ENDS: frozenset[Stage] = frozenset({"done", "stopped", "rejected", "taken_back"})

COUNTED = "counted"
"""Key of each replica's counts since the promotion in ``Retraining.found``."""
WAITING = "waiting"
"""Key of the newest stage there whose deadline a message announced."""


@dataclass(frozen=True)
class Retraining(Record):
    """A model that is retrained, or was, or would have been: ``observe`` ends it where it was decided."""

    id: str
    name: str
    champion: int
    """The version that was live when it was decided."""
    champion_run_id: str
    trigger: Trigger
    evidence: str
    """What triggered it, as a key: the same evidence never leads to two retrainings."""
    evidence_at: datetime
    """The time of the newest fact in it."""
    why: str
    """In a sentence, with numbers; of a person, what they said."""
    settings: dict[str, Any]
    """The ``retrain`` section as it was when it was decided."""
    actor: str
    stage: Stage
    made_at: datetime
    stage_at: datetime
    """Since when it is at this stage."""
    reasons: dict[str, Any] = field(default_factory=dict)
    """The numbers that led to it."""
    stages: tuple[dict[str, Any], ...] = ()
    """All stages so far: ``stage``, ``at`` (ISO 8601), ``why``, ``actor``."""
    revision: int = 0
    """How often it was changed."""
    ended_at: datetime | None = None
    submission_id: str | None = None
    """Of its newest Ray job."""
    run_id: str | None = None
    version: int | None = None
    rollout_id: str | None = None
    failures: int = 0
    """Failed attempts of this stage."""
    found: dict[str, Any] = field(default_factory=dict)
    """What each stage found, by its name: the evidence of a proposal, the gate's decision, the replay's numbers."""
    note: str = ""
    """Why it is where it is: what it waits for, or how it ended."""

    @property
    def is_open(self) -> bool:
        """Return whether it has not ended."""
        return self.ended_at is None

    def at(self, stage: Stage, *, now: datetime, note: str = "", **changes: Any) -> Retraining:
        """Return it at a stage from now on, with no failed attempt of that; ``changes`` are other fields.

        Where it is at that stage, only these and the note change. No stage begins before the one before it, whatever
        the clock says.
        """
        if stage == self.stage:
            return replace(self, note=note, **changes)
        now = max(now, self.stage_at)
        ended = now if stage in ENDS else None
        return replace(
            self, **{"stage": stage, "stage_at": now, "note": note, "failures": 0, "ended_at": ended} | changes
        )

    def text(self) -> str:
        """Return it as a line."""
        what = f"version {self.version}" if self.version is not None else f"for version {self.champion}"
        when = f"since {self.stage_at:%Y-%m-%d %H:%M} UTC" if self.is_open else f"{self.ended_at:%Y-%m-%d %H:%M} UTC"
        stage = "observed" if self.stage == "decided" and not self.is_open else self.stage.replace("_", " ")
        note = f": {self.note}" if self.note else ""
        return f"retraining {self.id} ({self.trigger}, {what}): {stage} {when}{note}"


def retraining_id(state_id: str, name: str, trigger: Trigger, evidence: str) -> str:
    """Return the same id whichever process of a state decides on the evidence, and another one in another state.

    Runs of several states may be in one MLflow, and their tables in one storage.
    """
    return hashlib.sha256(f"{state_id}\0{name}\0{trigger}\0{evidence}".encode()).hexdigest()[:12]


def begin(
    database: Database,
    retraining: Retraining,
    *,
    known: int | None = None,
    message: Message | None = None,
    actor: str | None = None,
) -> bool:
    """Add a retraining with its audit event and its message, in one transaction; return False if it is not to be added.

    It is not where it is there already, or where there is another number of retrainings of the model than were
    ``known`` when it was decided: then it was decided on an outdated reading.

    Raises:
        RefusedError: the model is frozen at ``made_at``, or another retraining of it is open; nothing was changed.
        StorageError, UnreachableError: the database cannot be written; nothing was changed.
    """
    with database.writing() as connection:
        mine = retrainings.c.id == retraining.id
        if connection.execute(sa.select(retrainings.c.id).where(mine)).first() is not None:
            return False
        if known is not None and number_in(connection, retraining.name) != known:
            return False
        frozen = freeze_in(connection, retraining.name)
        if frozen is not None and frozen.holds(retraining.made_at):
            raise RefusedError(frozen.text(), hint=f"To end that: raymlops freeze {retraining.name} --thaw --why TEXT.")
        if found := retrainings_in(connection, retraining.name, open_only=True):
            raise _busy(found[0])
        actor = actor or retraining.actor
        first = _entry(retraining, why=retraining.why, actor=actor)
        kept = replace(retraining, stages=(first,))
        connection.execute(sa.insert(retrainings), asdict(kept))
        _told(connection, None, kept, why=retraining.why, message=message, actor=actor)
    return True


def advance(
    database: Database,
    before: Retraining,
    after: Retraining,
    *,
    why: str,
    message: Message | None = None,
    actor: str | None = None,
    given: Given | None = None,
) -> Retraining | None:
    """Change a retraining, with its audit event and its message, in one transaction; return it as it is from now on.

    None where another one changed it since ``before`` was read: nothing was changed. ``after`` is at the same stage, a
    later one or an end (``Retraining.at``). A change at the same stage that gives it nothing but another note and other
    counts has no audit event. ``given`` raises where something that the change rests on is otherwise, in the same
    transaction.

    Raises:
        RefusedError: it has ended, ``after`` is at an earlier stage, or by ``given``; nothing was changed.
        StorageError, UnreachableError: the database cannot be written; nothing was changed.
    """
    if not before.is_open:
        raise RefusedError(f"retraining {before.id} of {before.name} has ended: {before.text()}")
    if STAGES.index(after.stage) < STAGES.index(before.stage):
        raise RefusedError(f"retraining {before.id} of {before.name} is {before.stage}, and cannot be {after.stage}")
    moved = after.stage != before.stage
    with database.writing() as connection:
        if given is not None:
            given(connection)
        kept = replace(after, revision=before.revision + 1)
        if moved:
            kept = replace(kept, stages=(*before.stages, _entry(after, why=why, actor=actor)))
        same = (retrainings.c.id == before.id, retrainings.c.revision == before.revision)
        if not connection.execute(sa.update(retrainings).where(*same).values(asdict(kept))).rowcount:
            return None
        if moved or _told_of(after) != _told_of(before):
            _told(connection, before, kept, why=why, message=message, actor=actor)
    return kept


def still_at(one: Retraining) -> Given:
    """Return what raises RefusedError where a retraining is no longer at the stage at which it was read."""

    def check(connection: Connection) -> None:
        row = connection.execute(sa.select(retrainings.c.stage).where(retrainings.c.id == one.id)).first()
        if row is None or row.stage != one.stage:
            stage = "gone" if row is None else row.stage.replace("_", " ")
            raise RefusedError(
                f"retraining {one.id} of {one.name} was changed by another process a moment ago: it is {stage}"
            )

    return check


def retraining_of(database: Database, retraining_id: str) -> Retraining:
    """Return a retraining.

    Raises:
        NotFoundError: there is none with this id.
    """
    with database.reading() as connection:
        query = sa.select(retrainings).where(retrainings.c.id == retraining_id)
        row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NotFoundError(
            f"there is no retraining {retraining_id}",
            hint="raymlops proposals list shows those that wait for a person.",
        )
    return Retraining(**row)


def retrainings_of(
    database: Database, name: str | None = None, *, open_only: bool = False, limit: int | None = None
) -> list[Retraining]:
    """Return the retrainings of a model or of all, newest first; only those that have not ended, if wanted."""
    with database.reading() as connection:
        return retrainings_in(connection, name, open_only=open_only, limit=limit)


def number_in(connection: Connection, name: str) -> int:
    """Return how many retrainings of a model there were."""
    query = sa.select(sa.func.count()).select_from(retrainings).where(retrainings.c.name == name)
    return connection.scalar(query) or 0


def retrainings_that_count(
    database: Database, name: str, *, champion: int, since: datetime
) -> tuple[tuple[Retraining, ...], int]:
    """Return the retrainings of a model by which it is decided whether another one begins, and how many there were.

    Those for its champion, those decided since a time, and the newest two: one may be open, and the other one ended.
    The newest first.
    """
    newest = sa.select(retrainings.c.id).where(retrainings.c.name == name)
    newest = newest.order_by(retrainings.c.made_at.desc(), retrainings.c.id).limit(2)
    wanted = (retrainings.c.champion == champion) | (retrainings.c.made_at > since) | retrainings.c.id.in_(newest)
    with database.reading() as connection:
        return tuple(retrainings_in(connection, name, wanted)), number_in(connection, name)


def retrainings_in(
    connection: Connection,
    name: str | None = None,
    *wanted: sa.ColumnElement[bool],
    open_only: bool = False,
    limit: int | None = None,
) -> list[Retraining]:
    """Return the retrainings of a model or of all, as ``retrainings_of``."""
    query = sa.select(retrainings).where(*wanted)
    query = query.order_by(retrainings.c.made_at.desc(), retrainings.c.id).limit(limit)
    if name is not None:
        query = query.where(retrainings.c.name == name)
    if open_only:
        query = query.where(retrainings.c.ended_at.is_(None))
    return [Retraining(**row) for row in connection.execute(query).mappings()]


def baking_in(connection: Connection) -> list[Retraining]:
    """Return the retrainings whose version was promoted, and may be taken back."""
    return [one for one in retrainings_in(connection, open_only=True) if one.stage == "baking"]


def kept_by_bakes(database: Database, name: str) -> set[int]:
    """Return the versions of a model to which a bake may give the route back, which are warm until it has ended."""
    stages = {"rolling_out", "baking"}  # a promotion is found, and its bake begins, a moment later
    return {one.champion for one in retrainings_of(database, name, open_only=True) if one.stage in stages}


def bake_epoch(one: Retraining) -> str:
    """Return the name under which replicas count the requests of a version that bakes."""
    return f"{one.id}.bake"


def _entry(one: Retraining, *, why: str, actor: str | None) -> dict[str, Any]:
    return {"stage": one.stage, "at": one.stage_at.isoformat(), "why": why, "actor": actor or one.actor}


def _told(
    connection: Connection,
    before: Retraining | None,
    after: Retraining,
    *,
    why: str,
    message: Message | None,
    actor: str | None,
) -> None:
    if message is not None:
        connection.execute(sa.insert(messages), asdict(message))
    add_event(
        connection,
        actor=actor,
        action=f"retrain.{after.stage}",
        subject=after.name,
        before=_few(before),
        after=_few(after),
        why=why,
    )


def _told_of(one: Retraining) -> Retraining:
    return replace(one, note="", found={key: value for key, value in one.found.items() if key != COUNTED})


def _few(one: Retraining | None) -> Mapping[str, Any] | None:
    """Return a retraining for the audit record: what each stage found is in its own row."""
    left_out = {"found", "stages", "settings"}
    return None if one is None else {key: value for key, value in one.to_dict().items() if key not in left_out}


def _busy(found: Retraining) -> RefusedError:
    return RefusedError(
        f"{found.name} is retrained already: {found.text()}",
        hint="One at a time. raymlops proposals list shows what waits for a person; raymlops status what runs.",
    )
