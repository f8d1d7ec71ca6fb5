"""Messages about incidents and retrainings: what somebody is to be told, and which messengers have it.

Owns the records of the outbox. A message is written with what is marked as told (``state.watch.incidents``), or with
the stage of the retraining (``state.loop``). Knows nothing of how one is sent.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import sqlalchemy as sa

from raymlops.records import Record
from raymlops.state.schema import incidents, messages, retrainings

if TYPE_CHECKING:
    from datetime import datetime

    from raymlops.state.database import Database

Told = Literal[
    "opened",
    "minor",
    "acknowledged",
    "closed",
    "decided",
    "proposed",
    "waiting",
    "promoted",
    "worse",
    "done",
    "stopped",
    "taken_back",
]
"""``minor`` of incidents that open, of inputs on which the output hardly depends; ``acknowledged`` of those that stay
open; from ``decided`` on of a retraining."""

_SUBJECTS = sa.union_all(
    sa.select(incidents.c.id, incidents.c.name), sa.select(retrainings.c.id, retrainings.c.name)
).subquery("subjects")
"""What a message may be about, whose ids are of different lengths."""


@dataclass(frozen=True)
class Message(Record):
    """What somebody is to be told; ``sent_at`` is None until every messenger has it."""

    id: str
    incident: str
    """The id of the retraining, or of the first of the incidents."""
    what: Told
    title: str
    body: str
    created_at: datetime
    attempts: int = 0
    retry_at: datetime | None = None
    sent_at: datetime | None = None
    last_error: str | None = None
    reached: tuple[str, ...] = ()
    """The keys of the messengers that have it."""


def messages_of(database: Database, name: str, *, limit: int | None = None) -> list[Message]:
    """Return the messages about a model's incidents and retrainings, newest first."""
    about = _SUBJECTS.c
    query = sa.select(messages).where(messages.c.incident.in_(sa.select(about.id).where(about.name == name)))
    with database.reading() as connection:
        rows = connection.execute(query.order_by(messages.c.created_at.desc(), messages.c.id).limit(limit))
        return [Message(**row) for row in rows.mappings()]


def unsent_messages(database: Database) -> dict[str, list[Message]]:
    """Return the messages that some messenger still lacks by model, oldest first."""
    query = sa.select(_SUBJECTS.c.name, messages).join(_SUBJECTS, _SUBJECTS.c.id == messages.c.incident)
    query = query.where(messages.c.sent_at.is_(None)).order_by(messages.c.created_at, messages.c.id)
    found: dict[str, list[Message]] = {}
    with database.reading() as connection:
        for row in connection.execute(query).mappings():
            found.setdefault(row["name"], []).append(
                Message(**{key: value for key, value in row.items() if key != "name"})
            )
    return found


def put_message(database: Database, message: Message) -> None:
    """Write what became of a message; one that is sent stays so."""
    unsent = (messages.c.id == message.id) & messages.c.sent_at.is_(None)
    with database.writing() as connection:
        connection.execute(sa.update(messages).where(unsent).values(**asdict(message)))
