"""Messages between ranks and driver: events, heartbeats and errors one way, orders the other.

Owns the messages and the mailbox that holds them until the driver polls. The mailbox runs as a Ray actor, but this file
knows nothing of that: it is a plain class whose methods return at once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.training.events import Event
    from raymlops.training.supervision.failure_policy import Raised

MAX_ARTIFACT_BYTES = 256 << 20
"""Size of the artifacts that wait for the driver."""


@dataclass(frozen=True)
class Info:
    """The process of a rank. ``handle`` kills it; ``log`` is the file of its stderr."""

    pid: int
    node_id: str
    host: str = ""
    handle: Any = None
    log: str = ""


@dataclass(frozen=True)
class Heartbeat:
    """The progress of a rank: ``step`` counts the optimizer steps of the run.

    ``step_age_s`` are the seconds since the last step, ``tick_age_s`` those since the last sign of life of the loop,
    ``silent_s`` those since the mailbox heard from the rank. ``done`` says that the loop has ended, in success or not.
    """

    rank: int
    step: int = 0
    step_age_s: float = 0.0
    tick_age_s: float = 0.0
    silent_s: float = 0.0
    done: bool = False


@dataclass(frozen=True)
class Orders:
    """Orders to a rank: stop after a last checkpoint, for ``reason``; report the stacks of its threads."""

    reason: str = ""
    dump: int = 0
    """The number of the latest request for stacks, from 1."""


@dataclass
class Inbox:
    """What the driver receives: ``events`` since it last polled, the rest of the current attempt."""

    events: list[Event] = field(default_factory=list)
    heartbeats: dict[int, Heartbeat] = field(default_factory=dict)
    infos: dict[int, Info] = field(default_factory=dict)
    raised: dict[int, Raised] = field(default_factory=dict)
    stacks: dict[int, str] = field(default_factory=dict)


class Mailbox:
    """Holds the messages of one run's attempts. Messages from ranks of an earlier attempt are dropped."""

    def __init__(self, attempt: int = 0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._inbox = Inbox()
        self._heard_s: dict[int, float] = {}
        self._attempt = attempt
        self._orders = Orders()
        self._artifact_bytes = 0
        """Size of the artifacts in the inbox."""

    def begin(self, attempt: int) -> None:
        """Forget the ranks and orders of the earlier attempt; its events are kept."""
        self._inbox, self._heard_s = Inbox(self._inbox.events), {}
        self._attempt, self._orders = attempt, Orders()

    def put(self, event: Event) -> None:
        """Add an event of rank 0. Artifacts that the driver does not take are dropped from a size on."""
        if event.artifact is not None:
            self._artifact_bytes += len(event.artifact.data)
            if self._artifact_bytes > MAX_ARTIFACT_BYTES:
                self._artifact_bytes -= len(event.artifact.data)
                text = f"{event.artifact.kind} {event.artifact.name!r} is not logged: callbacks log too much at a time"
                event = replace(event, kind="message", message=text, artifact=None)
        self._inbox.events.append(event)

    def heartbeat(self, heartbeat: Heartbeat, *, attempt: int, info: Info | None = None) -> Orders | None:
        """Add a heartbeat and return the orders, or None to a rank of an earlier attempt."""
        if attempt != self._attempt:
            return None
        self._heard_s[heartbeat.rank] = self._clock()
        self._inbox.heartbeats[heartbeat.rank] = heartbeat
        if info is not None:
            self._inbox.infos[heartbeat.rank] = info
        return self._orders

    def failed(self, rank: int, raised: Raised, *, attempt: int) -> None:
        """Add the exception of a rank."""
        if attempt == self._attempt:
            self._inbox.raised[rank] = replace(raised, at_s=self._clock())

    def stacks(self, rank: int, text: str, *, attempt: int) -> None:
        """Add the stacks of a rank's threads."""
        if attempt == self._attempt:
            self._inbox.stacks[rank] = text

    def order(self, reason: str) -> None:
        """Order all ranks to stop after a last checkpoint."""
        self._orders = replace(self._orders, reason=reason)

    def dump(self) -> None:
        """Request the stacks of all ranks; earlier ones are forgotten."""
        self._inbox.stacks = {}
        self._orders = replace(self._orders, dump=self._orders.dump + 1)

    def take(self) -> Inbox:
        """Return the events since the last call, and everything known of the current attempt."""
        found, now_s, self._artifact_bytes = self._inbox, self._clock(), 0
        self._inbox = replace(found, events=[])
        heard = found.heartbeats.items()
        return replace(
            found, heartbeats={rank: replace(beat, silent_s=now_s - self._heard_s[rank]) for rank, beat in heard}
        )
