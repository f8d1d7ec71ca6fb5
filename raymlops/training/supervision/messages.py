"""What ranks and driver say to each other: events, heartbeats and errors one way, orders the other.

Owns the values that travel and the box that holds them until the driver looks. The box is an actor of Ray's, but
this file knows nothing of that: it is a plain class whose methods return at once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.training.events import Event
    from raymlops.training.supervision.failure_policy import Raised


@dataclass(frozen=True)
class Info:
    """Who a rank is. ``handle`` ends it; ``log`` is the file of what it prints."""

    pid: int
    node_id: str
    host: str = ""
    handle: Any = None
    log: str = ""


@dataclass(frozen=True)
class Beat:
    """A rank's heartbeat: ``ticks`` counts signs of life of its loop, ``step`` the optimizer steps of the run.

    ``step_age_s`` and ``tick_age_s`` are seconds since either last moved, ``silent_s`` since the box heard of the
    rank. ``done`` says that its loop has ended, well or not.
    """

    rank: int
    step: int = 0
    ticks: int = 0
    step_age_s: float = 0.0
    tick_age_s: float = 0.0
    silent_s: float = 0.0
    done: bool = False


@dataclass(frozen=True)
class Orders:
    """What a rank is to do: end after a last checkpoint, for ``reason``; say where each of its threads is."""

    reason: str = ""
    dump: int = 0
    """Which dump is asked for, counted from 1."""


@dataclass(frozen=True)
class Letters:
    """What came in since the driver last looked; ``beats``, ``infos`` and ``raised`` are of the present attempt."""

    events: list[Event] = field(default_factory=list)
    beats: dict[int, Beat] = field(default_factory=dict)
    infos: dict[int, Info] = field(default_factory=dict)
    raised: dict[int, Raised] = field(default_factory=dict)
    stacks: dict[int, str] = field(default_factory=dict)
    controller: Any = None
    """Ray Train's controller of the attempt, once it runs."""


@dataclass
class _Present:
    """What is known of one attempt."""

    number: int = 0
    orders: Orders = Orders()
    beats: dict[int, tuple[float, Beat]] = field(default_factory=dict)
    infos: dict[int, Info] = field(default_factory=dict)
    raised: dict[int, Raised] = field(default_factory=dict)
    stacks: dict[int, str] = field(default_factory=dict)
    controller: Any = None


class Mailbox:
    """Holds what is said during the attempts of one run. What a former attempt's ranks still say is dropped."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._events: list[Event] = []
        self._now = _Present()

    def begin(self, attempt: int) -> None:
        """Forget the former attempt's ranks and orders; its events are kept."""
        self._now = _Present(attempt)

    def put(self, event: Event) -> None:
        """Take in an event of rank 0."""
        self._events.append(event)

    def introduce(self, controller: Any, *, attempt: int) -> None:
        """Take in the handle of the attempt's controller."""
        if attempt == self._now.number:
            self._now.controller = controller

    def beat(self, beat: Beat, *, attempt: int, info: Info | None = None) -> Orders | None:
        """Take in a heartbeat and return the orders, or None for a rank that nobody waits for any more."""
        if attempt != self._now.number:
            return None
        self._now.beats[beat.rank] = (self._clock(), beat)
        if info is not None:
            self._now.infos[beat.rank] = info
        return self._now.orders

    def failed(self, rank: int, raised: Raised, *, attempt: int) -> None:
        """Take in what a rank raised."""
        if attempt == self._now.number:
            self._now.raised[rank] = replace(raised, at_s=self._clock())

    def stacks(self, rank: int, text: str, *, attempt: int) -> None:
        """Take in where the threads of a rank are."""
        if attempt == self._now.number:
            self._now.stacks[rank] = text

    def order(self, reason: str) -> None:
        """Tell all ranks to end after a last checkpoint."""
        self._now.orders = replace(self._now.orders, reason=reason)

    def dump(self) -> None:
        """Ask all ranks for their stacks; earlier ones are forgotten."""
        self._now.stacks.clear()
        self._now.orders = replace(self._now.orders, dump=self._now.orders.dump + 1)

    def take(self) -> Letters:
        """Return the events since the last call, and all that is known of the present attempt."""
        events, self._events = self._events, []
        now, now_s = self._now, self._clock()
        beats = {rank: replace(beat, silent_s=now_s - at_s) for rank, (at_s, beat) in now.beats.items()}
        return Letters(events, beats, dict(now.infos), dict(now.raised), dict(now.stacks), controller=now.controller)
