"""How many trials of a sweep may run at a time, and whether the sweep makes progress.

Owns when to count resources and when to report a stall; the caller reads the cluster.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from raymlops.cluster.placement import WorkerRequest, room
from raymlops.errors import describe
from raymlops.tuning.stalls import unreported_stall_s

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.tuning.stalls import Waiter

COUNT_EVERY_S = 5.0


def concurrency(spec: ProjectSpec, nodes: Sequence[Mapping[str, float]]) -> int:
    """Return how many trials run at a time: as many as fit on the nodes, at most ``max_concurrent``.

    ``nodes`` are the resources that the sweep may use on each node: free ones, and those that it uses already. A trial
    of several workers may span nodes.
    """
    each = WorkerRequest(1, spec.train.cpus_per_worker, spec.train.gpus_per_worker)
    fits = int(room(each, nodes)) // spec.sweep.workers_per_trial
    # At least one: it waits for resources that others hold, or for a node that an autoscaler adds.
    return max(1, min(fits, spec.sweep.max_concurrent or fits))


class Explain(Protocol):
    """Explains who holds the resources that pending trials need; asks the cluster."""

    def __call__(self, waiters: Sequence[Waiter], *, still_s: float, running: int) -> str:
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
        """Return the message to emit now about the ``waiters`` among ``busy`` trials; mostly empty."""
        now_s = self._clock()
        still_s = unreported_stall_s(waiters, now_s=now_s, moved_s=self._moved_s, reported_s=self._reported_s)
        if still_s is None or self._explain is None:
            return ""
        self._reported_s = now_s
        try:
            return self._explain(waiters, still_s=still_s, running=busy - len(waiters))
        except Exception as error:
            return (
                f"no progress for {still_s:.0f} s: {len(waiters)} trials wait for resources, "
                f"and the cluster cannot be asked who holds them: {describe(error)}"
            )
