"""Per-version request, error and latency counters for rollouts, reported to the controller.

Owns which version an error counts against, and how the counts reach the controller. Knows nothing of rollouts.

Counts only grow within an epoch of the traffic, and the controller keeps the newest of each replica. So a report that
is lost, duplicated or late is corrected by the next one.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from raymlops.predictions.counts import Counts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.predictions.served import RequestRecord
    from raymlops.serving.traffic import Traffic

CONTROLLER = "raymlops-controller"
"""Prefix of a controller's name; the whole name in releases with one controller per cluster."""
NAMESPACE = "raymlops"
CHAMPION = "champion"
"""The row of the champion's own answers; the other rows are versions, as text."""
MAX_EPOCHS = 8
PUSH_S = 1.0
LOOK_AGAIN_S = 5.0

OVERLOADED = "overloaded"
"""Code of a request that was refused because the queue was full."""
INVALID_ROWS = "invalid_rows"
"""Code of a request whose rows were rejected: by the recipe, if they had fit the signature."""
CLIENT_LEFT, TIMED_OUT = 499, 504
"""Statuses of a caller that disconnected before the answer, and of a missed deadline, which for a canary is late."""

Report = dict[str, dict[str, dict[str, Any]]]
"""Epoch to row to the fields of its ``Counts``."""
Send = Callable[[str, str, int, Report], None]


class RolloutCounts:
    """Count requests by version, and report to the controller at most once a second while traffic is split.

    A sink. ``find`` returns a function that sends a report, None without a controller.
    """

    def __init__(
        self,
        *,
        name: str,
        replica: str,
        traffic: Callable[[], Traffic],
        slow_s: Callable[[], float],
        find: Callable[[], Send | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._replica = replica
        self._traffic = traffic
        self._slow_s = slow_s
        self._counts: OrderedDict[str, dict[str, Counts]] = OrderedDict()
        self._epoch = ""
        self._link = _Link(find, clock=clock)
        self._clock = clock
        self._pushed_at = float("-inf")
        self._sequence = 0
        self._changed = False

    def take(self, batch: Sequence[RequestRecord]) -> None:
        """Count a batch, and report when due."""
        traffic = self._traffic()
        if traffic.epoch != self._epoch:
            self._counts.pop(traffic.epoch, None)  # weights that return start new counts
            self._epoch = traffic.epoch
        shared = bool(traffic.canaries or traffic.shadows)
        slow_s = self._slow_s()
        for served in batch:
            row = _row_of(served)
            if row is not None and (shared or served.epoch):
                # By the epoch of the choice: the weights may have changed before the answer.
                rows = self._rows(served.epoch)
                rows[row] = _counted(rows.get(row, Counts()), served, slow_s=slow_s)
                self._changed = True
        self._push()

    def close(self) -> None:
        """Report the remaining counts."""
        self._pushed_at = float("-inf")
        self._push()

    def report(self) -> Report:
        """Return all counts."""
        return {epoch: {row: asdict(counts) for row, counts in rows.items()} for epoch, rows in self._counts.items()}

    def _rows(self, epoch: str) -> dict[str, Counts]:
        rows = self._counts.setdefault(epoch, {})
        while len(self._counts) > MAX_EPOCHS:
            self._counts.popitem(last=False)
        return rows

    def _push(self) -> None:
        now = self._clock()
        if not self._changed or now - self._pushed_at < PUSH_S:
            return
        if (send := self._link.get()) is None:
            return
        self._sequence += 1
        self._pushed_at, self._changed = now, False
        try:
            send(self._name, self._replica, self._sequence, self.report())
        except Exception:  # the controller was replaced: the next one gets all counts
            self._changed = True
            self._link.drop()


class _Link:
    """The connection to the controller, looked up at most every few seconds, in a thread of its own.

    In a cluster without its head the lookup blocks, which must delay neither counting nor closing.
    """

    def __init__(self, find: Callable[[], Send | None], *, clock: Callable[[], float]) -> None:
        self._find = find
        self._clock = clock
        self._send: Send | None = None
        self._looked_at = float("-inf")
        self._looking: threading.Thread | None = None

    def get(self) -> Send | None:
        """Return the function that sends a report; None while the controller is being looked up."""
        looking = self._looking is not None and self._looking.is_alive()
        if self._send is None and not looking and self._clock() - self._looked_at >= LOOK_AGAIN_S:
            self._looked_at = self._clock()
            self._looking = threading.Thread(target=self._look, name="raymlops-find-controller", daemon=True)
            self._looking.start()
            self._looking.join(0.1)  # usually it is found, and the first report need not wait for the next batch
        return self._send

    def drop(self) -> None:
        """Look the controller up again."""
        self._send = None

    def _look(self) -> None:
        try:
            self._send = self._find()
        except Exception:  # no controller, or no cluster: looked up again later
            self._send = None


def controller_of(state_id: str) -> str:
    """Return the name of a state's controller; each state on a cluster has its own."""
    return f"{CONTROLLER}-{state_id}" if state_id else CONTROLLER


def find_controller(state_id: str) -> Send | None:
    """Return the function that sends a report to the controller of a state, without waiting for it."""
    import ray

    try:
        actor = ray.get_actor(controller_of(state_id), namespace=NAMESPACE)
    except ValueError:
        return None

    def arrived(ref: Any) -> bool:
        ready, _ = ray.wait([ref], timeout=0)
        if ready:
            ray.get(ref)
        return bool(ready)

    return sending(actor.report.remote, arrived)


def sending(report: Callable[..., Any], arrived: Callable[[Any], bool]) -> Send:
    """Return a function that sends by ``report``, which never raises, and raises once a report is known to be lost.

    ``arrived`` returns whether a result of ``report`` is available, and raises if it never will be. An actor that was
    replaced accepts calls forever; only their results show it.
    """
    last: list[Any] = []

    def send(name: str, replica: str, sequence: int, counts: Report) -> None:
        if last and arrived(last[0]):
            last.clear()
        ref = report(name, replica, sequence, counts)
        if not last:
            last.append(ref)

    return send


def _row_of(served: RequestRecord) -> str | None:
    """Return the row that a request counts for; None if it says nothing of a version.

    That is one that was pinned, a copy, turned away by overload, or rejected before a model ran.
    """
    if served.fallback_from is not None:
        return None if served.fallback_code == OVERLOADED else str(served.fallback_from)
    judged = served.status < 400 or _failed(served) or _refused(served) or served.status in {TIMED_OUT, CLIENT_LEFT}
    if served.columns is None or not judged:
        return None
    if served.route == "champion":
        return CHAMPION
    return str(served.version) if served.route == "canary" else None


def _failed(served: RequestRecord) -> bool:
    """Return whether the model failed: overload does not count, a non-finite output does."""
    return (served.status >= 500 and served.status not in {503, 504}) or served.code == "not_finite"


def _refused(served: RequestRecord) -> bool:
    """Return whether the recipe rejected the rows, by the version's own rules."""
    return served.code == INVALID_ROWS and served.columns is not None


def _counted(counts: Counts, served: RequestRecord, *, slow_s: float) -> Counts:
    if served.fallback_from is not None:
        late = served.fallback_code == "late"
        return replace(counts, requests=counts.requests + 1, errors=counts.errors + (not late), late=counts.late + late)
    left = served.status == CLIENT_LEFT
    late = left and served.route == "canary"
    return replace(
        counts,
        requests=counts.requests + 1,
        errors=counts.errors + _failed(served),
        # A caller that leaves the champion would also have left the canary, where it counts as late.
        slow=counts.slow + (served.model_seconds >= slow_s or (left and not late) or served.status == TIMED_OUT),
        late=counts.late + late,
        seconds_sum=counts.seconds_sum + served.model_seconds,
        refused=counts.refused + _refused(served),
    )
