"""How many trials of a sweep may run at a time, and whether the sweep makes progress.

Owns when to count resources and when to report a stall; the caller reads the cluster.

What a sweep cannot get now it requests, and no more than it could get: a trial that waits has a pending placement
group. Ray's autoscaler adds nodes for these, and other sweeps see them and release what is more than their share. So
Ray's own table is all that sweeps know of each other.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from raymlops.cluster.placement import WorkerRequest, add, room
from raymlops.errors import SweepError, describe
from raymlops.tuning.stalls import START_S, unreported_stall_s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from raymlops.cluster.placement import Contender, Resources
    from raymlops.config.schema import ProjectSpec
    from raymlops.tuning.stalls import StallReport, Waiter

COUNT_EVERY_S = 2.0


def trial_request(spec: ProjectSpec) -> WorkerRequest:
    """Return the resources of a trial, of each of its workers."""
    return WorkerRequest(spec.sweep.workers_per_trial, spec.train.cpus_per_worker, spec.train.gpus_per_worker)


def concurrency(
    spec: ProjectSpec,
    nodes: Mapping[str, Resources],
    *,
    free: Mapping[str, Resources] | None = None,
    contenders: Sequence[Contender] = (),
    growth: Sequence[Resources] | None = (),
) -> int:
    """Return how many trials to run or request at a time, at least one and at most ``max_concurrent``.

    - As many as fit on ``nodes``: the resources of each node that are free, and those that the sweep uses already.
      A trial of several workers may span nodes.
    - Of that at most its share, while others wait that could start on what is ``free`` and what the sweep holds beyond
      its share, and not on what is free alone: sweeps and waiting jobs share equally.
    - One more than fits, where other sweeps hold more than their share: they see that this one waits.
    - As many more as fit on ``growth``, the nodes that an autoscaler may add; where that is not known (None), up to
      ``max_concurrent`` or one more. While others wait for the sweep's share, none: what they wait for is requested.
    """
    each, most = trial_request(spec), spec.sweep.max_concurrent or math.inf
    fits = _trials(each, nodes.values())
    waiting = [contender for contender in contenders if contender.pending]
    while True:
        share = _share(each, nodes, [contender for contender in contenders if contender.held or contender in waiting])
        helped = [contender for contender in waiting if _helped(contender, each, nodes, free=free or {}, share=share)]
        if len(helped) == len(waiting):
            break
        waiting = helped  # fewer share, so that less is given up
    wanted: float = min(fits, share) if waiting else min(fits + 1, max(fits, share))
    if waiting:
        growth = ()
    if growth is None:
        wanted = most if most < math.inf else wanted + 1
    else:
        wanted += _trials(each, growth)
    # At least one: it waits for resources that others hold.
    return int(max(1, min(wanted, most)))


def _share(each: WorkerRequest, nodes: Mapping[str, Resources], sharing: Sequence[Contender]) -> int:
    """Return how many trials are the sweep's equal share of its nodes and of what the others hold."""
    shared = [nodes, *(contender.held for contender in sharing)]
    together = [add([part.get(node, {}) for part in shared]) for node in {node for part in shared for node in part}]
    return math.ceil(_trials(each, together) / (1 + len(sharing)))


def _helped(
    contender: Contender,
    each: WorkerRequest,
    nodes: Mapping[str, Resources],
    *,
    free: Mapping[str, Resources],
    share: int,
) -> bool:
    """Return whether something that a job waits for could start once the sweep has no more than its share."""
    idle = list(free.values())
    for group in contender.pending:
        if (rest := _placed(group, idle)) is not None:
            idle = rest  # it starts without our help
        elif (left := _placed(group, list(nodes.values()))) is not None and _trials(each, left) >= share:
            return True
    return False


def _trials(each: WorkerRequest, nodes: Iterable[Resources]) -> int:
    return int(room(each, list(nodes))) // each.workers


def _placed(group: Sequence[Resources], nodes: Sequence[Resources]) -> list[Resources] | None:
    """Return what is left of the nodes with all bundles of a group on them; None where there is no room for all."""
    left = list(nodes)
    for bundle in group:
        for index, node in enumerate(left):
            if all(node.get(name, 0.0) >= amount for name, amount in bundle.items()):
                left[index] = {name: round(amount - bundle.get(name, 0.0), 4) for name, amount in node.items()}
                break
        else:
            return None
    return left


class Explain(Protocol):
    """Explains who holds the resources that pending trials need; asks the cluster."""

    def __call__(self, waiters: Sequence[Waiter], *, still_s: float, running: int) -> StallReport:
        """Return the explanation in one line."""
        ...


class Slots:
    """The number that the last two counts agree on.

    Resources that are free for a moment are not counted: a replica that died comes back, and Ray's view of free
    resources lags by up to a second.
    """

    def __init__(self, count: Callable[[], int], *, clock: Callable[[], float]) -> None:
        self._count = count
        self._clock = clock
        self.now = self._seen = count()
        self._counted_s = clock()

    def recount(self) -> None:
        """Count again if the last count is ``COUNT_EVERY_S`` old."""
        now_s = self._clock()
        if now_s - self._counted_s < COUNT_EVERY_S:
            return
        self._counted_s = now_s
        with suppress(Exception):  # Ray's head may be unreachable for a moment
            seen = self._count()
            least, most = sorted((seen, self._seen))
            self.now, self._seen = min(max(self.now, least), most), seen


class StallDetector:
    """Detects that trials wait for resources and nothing else happens."""

    def __init__(self, explain: Explain | None, *, clock: Callable[[], float]) -> None:
        self._explain = explain
        self._clock = clock
        self._moved_s = clock()
        self._reported_s: float | None = None

    def moved(self) -> None:
        """Record that a trial started, reported or ended."""
        self._moved_s = self._clock()

    def look(self, waiters: Sequence[Waiter], *, busy: int) -> str:
        """Return the message to emit now about the ``waiters`` among ``busy`` trials; mostly empty.

        Raises:
            SweepError: no process starts, although its resources are reserved, and no trial runs that would end.
        """
        now_s = self._clock()
        still_s = unreported_stall_s(waiters, now_s=now_s, moved_s=self._moved_s, reported_s=self._reported_s)
        if still_s is None or self._explain is None:
            return ""
        self._reported_s, running = now_s, busy - len(waiters)
        try:
            report = self._explain(waiters, still_s=still_s, running=running)
        except Exception as error:
            return (
                f"no progress for {still_s:.0f} s: {len(waiters)} trials wait for resources, "
                f"and the cluster cannot be asked who holds them: {describe(error)}"
            )
        if report.reserved and running == 0 and still_s >= START_S:
            raise SweepError(
                f"no trial's process has started within {still_s:.0f} s, although its resources are reserved",
                hint="Check Ray's log on the node. The trials continue when the sweep is resumed.",
            )
        return report.text
