"""Detect a stalled sweep, whose trials wait for resources, and explain it: who waits, who holds them, what to do.

Pure: the time and the cluster's resources are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from raymlops.cluster.placement import WorkerRequest, add, remedy, room, show, some_end
from raymlops.display import some_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.cluster.placement import Holder, Resources

STALL_S = 30.0
REPEAT_S = 300.0
"""Interval of repeated reports."""
START_S = 600.0
"""A process that has its resources and does not start for so long never will."""
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Waiter:
    """A trial that was started and has no process yet."""

    number: int
    since_s: float
    cpus: float
    gpus: float
    workers: int = 1
    """Processes that share these resources equally, and may be on several nodes."""

    @property
    def ask(self) -> WorkerRequest:
        """Return the resources of its processes."""
        return WorkerRequest(self.workers, self.cpus / self.workers, self.gpus / self.workers)


@dataclass(frozen=True, slots=True)
class StallReport:
    """Who waits, who holds the resources, and what to do, in one line; whether the sweep has reserved them itself."""

    text: str
    reserved: bool = False


def unreported_stall_s(
    waiters: Sequence[Waiter], *, now_s: float, moved_s: float, reported_s: float | None
) -> float | None:
    """Return for how many seconds nothing has moved, if that is to be reported now, else None.

    ``moved_s`` is when a trial last started, reported or ended, ``reported_s`` when a stall was last reported. A trial
    that started to wait later gets the same time. Without waiting trials, the others may have long epochs.
    """
    if not waiters:
        return None
    since_s = max(moved_s, min(waiter.since_s for waiter in waiters))
    if reported_s is not None and reported_s >= since_s:
        return now_s - since_s if now_s - reported_s >= REPEAT_S else None
    return now_s - since_s if now_s - since_s >= STALL_S else None


def stall_report(
    waiters: Sequence[Waiter],
    *,
    still_s: float,
    running: int,
    total: Sequence[Resources],
    free: Sequence[Resources],
    own: Sequence[Resources],
    holders: Sequence[Holder],
) -> StallReport:
    """Return the report of a stall.

    ``total``, ``free`` and ``own`` are the resources of each node: all, the free ones, and those that this sweep has
    reserved; ``holders`` hold the others. ``running`` trials have a process.
    """
    asks = [waiter.ask for waiter in waiters]
    line = f"nothing has moved for {still_s:.0f} s: {_named(waiters)} for {_amounts(asks)}"
    if all(room(ask, own) >= ask.workers * (running + len(waiters)) for ask in asks):
        return StallReport(
            f"{line}, which the sweep has reserved, so their processes are starting. Loading may take long; "
            "otherwise check Ray's log on the node, then interrupt the sweep and resume it.",
            reserved=True,
        )
    found = [f"free: {show(add(free)) or 'nothing'} of {show(add(total)) or 'nothing'}"]
    if mine := show(add(own)):
        found.append(f"held by this sweep: {mine}")
    found += [f"held by {holder}" for holder in holders[:_SHOWN]]
    if len(holders) > _SHOWN:
        found.append(f"and by {len(holders) - _SHOWN} others")
    return StallReport(f"{line}; {'; '.join(found)}. {_advice(asks, total=total, holders=holders)}")


def _named(waiters: Sequence[Waiter]) -> str:
    numbers = [str(waiter.number) for waiter in waiters]
    return f"trial {numbers[0]} waits" if len(waiters) == 1 else f"trials {some_of(numbers, _SHOWN)} wait"


def _amounts(asks: Sequence[WorkerRequest]) -> str:
    amounts = list(dict.fromkeys(show(add([ask.each] * ask.workers)) for ask in asks))
    each = " each" if len(asks) > 1 and len(amounts) == 1 else ""
    return " or ".join(amounts) + each


def _advice(asks: Sequence[WorkerRequest], *, total: Sequence[Resources], holders: Sequence[Holder]) -> str:
    if not any(room(ask, total) >= ask.workers for ask in asks):
        return (
            "No node is large enough: the sweep continues once one joins. Or interrupt it, and resume it with a lower "
            "train.cpus_per_worker or train.gpus_per_worker."
        )
    advice = ["The sweep continues as soon as resources are free."]
    if ending := remedy(holders):
        advice.append(f"{ending}.")
    if some_end(holders):
        advice.append("Other jobs release theirs when they end; `ray job stop` stops one.")
    return " ".join(advice)
