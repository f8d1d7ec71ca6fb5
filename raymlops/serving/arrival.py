"""Arrival time of a request, passed from the process that accepts it to the one that answers it.

Owns how a time stamp travels between processes and machines. All processes of a machine share its monotonic clock. The
clock of another machine is compared by the smallest recent difference, that of its fastest request: a wall clock that
is wrong or adjusted makes no request late. A machine that is suspended loses that time on its monotonic clock: a
difference that no request comes near any more is forgotten.
"""

from __future__ import annotations

import math
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

ARRIVED = "raymlops.arrived"
"""Key of an ASGI scope for a ``Stamp``. It is not a header, so that no client can set it."""
METADATA = f":{ARRIVED}"
"""The same in the metadata of a gRPC call that the index forwards. HTTP/2 forbids clients such a name."""
WINDOW_S = 300.0
"""Minimum lifetime of a smallest difference: the monotonic clocks of two machines drift by milliseconds in it."""
NEAR_S = 1.0
"""How much later a request may be to be near the fastest one."""
FAR_S = 10.0
"""How long all requests have to be later than that before another clock counts as changed."""

Stamp = tuple[str, float]
"""The id of a machine's boot, and the seconds of its monotonic clock."""


def _machine() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # not Linux: each process counts as a machine
        return uuid.uuid4().hex


MACHINE = _machine()


def stamp() -> Stamp:
    """Return the time stamp of now."""
    return MACHINE, time.monotonic()


def from_client(metadata: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return a client's metadata without a forged time stamp."""
    return [(name, value) for name, value in metadata if name != METADATA]


def with_stamp(metadata: Sequence[tuple[str, Any]], arrived: Stamp) -> list[tuple[str, Any]]:
    """Return the metadata of a forwarded call; an earlier release ignores the addition."""
    machine, moment = arrived
    return [*from_client(metadata), (METADATA, f"{machine} {moment!r}")]


def stamp_in(metadata: Sequence[tuple[str, Any]]) -> Stamp | None:
    """Return when a forwarded call arrived; None for a call from a client, or from an earlier release."""
    for name, value in metadata:
        if name == METADATA:
            machine, _, moment = value.partition(" ")
            return machine, float(moment)
    return None


def refuse_late(late: bool) -> None:
    """Refuse a request whose deadline has passed already: nobody waits for it, and there may be many.

    Raises:
        TimeoutError: it has.
    """
    if late:
        raise TimeoutError


class Ages:
    """Measure the age of requests, from one event loop."""

    def __init__(self, *, machine: str = MACHINE, clock: Callable[[], float] = time.monotonic) -> None:
        self._machine = machine
        self._clock = clock
        self._others: dict[str, _Least] = {}

    def age_s(self, arrived: Stamp | None) -> float:
        """Return the seconds since a request arrived; 0 without a time stamp, never below 0.

        For another machine it is the excess over its fastest request, so never too much, except for ``FAR_S`` after it
        was suspended.
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
    """The smallest difference in the last one to two windows, of those since the clock changed."""

    __slots__ = ("before", "far_least", "far_since", "least", "since")

    def __init__(self, now: float, difference: float) -> None:
        self.begin(now, difference)

    def begin(self, now: float, difference: float) -> None:
        self.since, self.least, self.before = now, difference, difference
        self.far_since = self.far_least = math.inf

    def beyond(self, now: float, difference: float) -> float:
        if now - self.since > WINDOW_S:
            self.since, self.before, self.least = now, self.least, difference
        self.least = min(self.least, difference)
        excess = difference - min(self.least, self.before)
        if excess <= NEAR_S:
            self.far_since = self.far_least = math.inf
            return excess
        self.far_since, self.far_least = min(self.far_since, now), min(self.far_least, difference)
        if now - self.far_since <= FAR_S:
            return excess
        self.begin(now, self.far_least)
        return difference - self.least
