"""When a request arrived, told by the process that took it from its client to the one that answers it.

Owns how a moment travels between processes and machines. A machine's monotonic clock is one for all of its processes;
that of another machine is compared by the least difference seen lately, which the fastest of its requests had: clocks
that are set wrong, or set anew, make no request late.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

ARRIVED = "raymlops.arrived"
"""Key of an ASGI scope for a ``Stamp``. No client can set it, as it is no header."""
METADATA = f":{ARRIVED}"
"""The same among the metadata of a gRPC call on its way from the index. HTTP/2 lets no client send such a name."""
WINDOW_S = 300.0
"""How long a least difference counts, at least: monotonic clocks of two machines drift by milliseconds in it."""

Stamp = tuple[str, float]
"""A machine since its start, and the seconds of its monotonic clock."""


def _machine() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # not Linux: each process by itself, which is then compared as other machines are
        return uuid.uuid4().hex


MACHINE = _machine()


def stamp() -> Stamp:
    """Return this moment."""
    return MACHINE, time.monotonic()


def from_client(metadata: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return a client's metadata without a moment that it claims."""
    return [(name, value) for name, value in metadata if name != METADATA]


def with_stamp(metadata: Sequence[tuple[str, Any]], arrived: Stamp) -> list[tuple[str, Any]]:
    """Return the metadata of a call that is handed on; an earlier release passes over what is added."""
    machine, moment = arrived
    return [*from_client(metadata), (METADATA, f"{machine} {moment!r}")]


def stamp_in(metadata: Sequence[tuple[str, Any]]) -> Stamp | None:
    """Return when a call that was handed on arrived; None for one that came from its client, or is not told."""
    for name, value in metadata:
        if name == METADATA:
            machine, _, moment = value.partition(" ")
            return machine, float(moment)
    return None


def refuse_late(late: bool) -> None:
    """Refuse a request whose deadline has passed on its way here: nobody waits for it, and there may be many.

    Raises:
        TimeoutError: it is late.
    """
    if late:
        raise TimeoutError


class Ages:
    """Say how old requests are, from one event loop."""

    def __init__(self, *, machine: str = MACHINE, clock: Callable[[], float] = time.monotonic) -> None:
        self._machine = machine
        self._clock = clock
        self._others: dict[str, _Least] = {}

    def age_s(self, arrived: Stamp | None) -> float:
        """Return the seconds since a request arrived; 0 where nobody noted it. Never below 0.

        From another machine it is the time beyond what its fastest request took, so never too much.
        """
        if arrived is None:
            return 0.0
        machine, then = arrived
        now = self._clock()
        if machine == self._machine:
            return max(0.0, now - then)
        least = self._others.get(machine)
        if least is None:
            least = self._others[machine] = _Least(now, now - then)
        return least.beyond(now, now - then)


class _Least:
    """The least of the differences seen in the last one to two windows."""

    __slots__ = ("before", "least", "since")

    def __init__(self, now: float, difference: float) -> None:
        self.since, self.least, self.before = now, difference, difference

    def beyond(self, now: float, difference: float) -> float:
        if now - self.since > WINDOW_S:
            self.since, self.before, self.least = now, self.least, difference
        self.least = min(self.least, difference)
        return difference - min(self.least, self.before)
