"""Waiting for resources on the connected cluster, before workers start and while they run.

Owns the wait. Whether something fits is decided by ``placement``; what the cluster has and who holds it is read by
``resource_usage``, and what its autoscaler may add by ``autoscaler``.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING

from raymlops.cluster import resource_usage
from raymlops.cluster.autoscaler import autoscaler_growth
from raymlops.cluster.placement import WorkerRequest, add, decide, hint, kept_out, remedy, room, show, without
from raymlops.errors import InsufficientResourcesError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from raymlops.cluster.placement import Resources


class Places:
    """Places for workers like ``one``."""

    def __init__(self, one: WorkerRequest) -> None:
        self._one = one

    def count(self, *, without: Collection[str] = ()) -> float:
        """Return how many workers could start now, beside what runs, on other nodes than those in ``without``."""
        alive = resource_usage.alive_nodes()
        return room(self._one, [free for node, free in alive if node["NodeID"] not in without])

    def may_grow(self, workers: int) -> bool:
        """Return whether an autoscaler may make room for so many. Costs a task on the head."""
        total, available = resource_usage.nodes()
        requested = replace(self._one, workers=workers)
        verdict = decide(requested, total=total, available=available, growth=autoscaler_growth(requested))
        return verdict.kind == "grows"

    def waiting(self, *, workers: Collection[str]) -> str:
        """Return which tasks and actors workers on the nodes with these ids, one for each, leave no room for.

        Empty if none are pending. They may belong to another job: Ray does not say which.
        """
        requests = resource_usage.demands()
        if not requests:
            return ""
        counts, alive = Counter(workers), resource_usage.alive_nodes()
        held = [add([self._one.each] * counts[node["NodeID"]]) for node, _ in alive]
        total = [node["Resources"] for node, _ in alive]
        rest = [without(node, mine) for node, mine in zip(total, held, strict=True)]
        if not (waiting := kept_out(requests, rest=rest, held=held)):
            return ""
        asked = " or ".join(dict.fromkeys(show(each) for each in waiting))
        return (
            f"Ray tasks or actors that request {asked} wait for room; the workers hold {show(add(held))} of "
            f"{show(add(total))}"
        )

    def blocks(self, group_id: str) -> bool:
        """Return whether something may wait for the places of this placement group.

        Another placement group of its job counts, and pending tasks and actors of any job: Ray does not say which.
        """
        held, others_wait = resource_usage.reserved_beside_others(group_id)
        if others_wait or not held:
            return others_wait
        alive = resource_usage.alive_nodes()
        mine = [held.get(node["NodeID"], {}) for node, _ in alive]
        return bool(kept_out(resource_usage.demands(), rest=[free for _, free in alive], held=mine))

    def error(self, workers: int, *, waited_s: float) -> InsufficientResourcesError:
        """Return the error that says what is there and who holds it, after a wait in vain."""
        total, available = resource_usage.nodes()
        found = resource_usage.holders()
        verdict = decide(replace(self._one, workers=workers), total=total, available=available, holders=found)
        what_next = (
            "lower train.num_workers or the share of each, add nodes, or raise cluster.wait_s; a run that had "
            "begun resumes with `raymlops train --resume RUN_ID`"
        )
        return InsufficientResourcesError(
            f"{verdict.message}\n  waited {waited_s:.0f} s", hint=". ".join(filter(None, (what_next, remedy(found))))
        )


def check_fits(requested: WorkerRequest, *, wait_s: float, queues: bool = False) -> None:
    """Check, on the connected cluster, that the workers can run together; wait while others hold what they need.

    A caller that ``queues`` waits for what others hold itself, and is rejected only where it can never fit.

    Raises:
        InsufficientResourcesError: they can never fit, or did not within ``wait_s``; it says what was requested,
            what the cluster's maximum is (its autoscaler's included) and who holds what now.
    """
    deadline = time.monotonic() + wait_s
    growth: Sequence[Resources] | None = ()
    looked = False
    while True:
        total, available = resource_usage.nodes()
        if decide(requested, total=total, available=available).kind == "fits":
            return
        if not looked:  # asking for the limit costs a task on the head, so only where the nodes do not suffice
            growth, looked = autoscaler_growth(requested), True
        holders = resource_usage.holders()
        verdict = decide(requested, total=total, available=available, growth=growth, holders=holders)
        if verdict.kind == "grows" or (queues and verdict.kind == "busy"):
            return
        left = deadline - time.monotonic()
        if verdict.kind == "never" or left <= 0:
            raise InsufficientResourcesError(
                verdict.message if verdict.kind == "never" else f"{verdict.message}\n  waited {wait_s:g} s",
                hint=hint(verdict, holders),
            )
        time.sleep(min(1.0, left))


def logical_cpus(wanted: float | None) -> int:
    """Return the CPUs that a cluster of our own offers: what is wanted, else all this process may use.

    At least 2 are offered by default: a driver's worker and a replica then fit even one core, only slower.
    """
    if wanted is not None:
        return max(1, ceil(wanted))
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, min(usable, _quota()))


def _quota() -> int:
    """Return the CPUs of this container's quota (cgroup 2), rounded up; a large number without one."""
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:  # noqa: PTH123 - one read of a kernel file
            quota, period = file.read().split()
        return 2**31 if quota == "max" else ceil(int(quota) / int(period))
    except (OSError, ValueError):
        return 2**31
