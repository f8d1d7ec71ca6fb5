"""The child runs of a sweep in MLflow: one a trial, all written by the driver from one background thread.

Owns when what is written: a run is opened when its trial is drawn, its metrics are sent in batches at most each
``FLUSH_S`` and at its end, never a request a step. A slow MLflow delays no trial, and one that stops answering
in mid-sweep stops none: what could not be written waits and is tried again, at the latest at the end.
Knows nothing of Ray Tune or Optuna.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from raymlops.errors import TrackingError
from raymlops.tracking.params import flatten

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from raymlops.records import TrialStatus
    from raymlops.tracking.client import Tracker

FLUSH_S = 5.0
RETRY_S = 30.0
RUN_STATUS: dict[TrialStatus, Literal["FINISHED", "FAILED", "KILLED"]] = {
    "complete": "FINISHED",
    "pruned": "KILLED",
    "failed": "FAILED",
}


@dataclass
class _Child:
    run_id: Future[str] = field(default_factory=Future)
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)
    flushed_s: float = 0.0


class Children:
    """Writer of the child runs of one parent run."""

    def __init__(
        self, tracker: Tracker, *, experiment: str, parent_run_id: str, tags: Mapping[str, str], name: str
    ) -> None:
        self._tracker = tracker
        self._experiment = experiment
        self._parent_run_id = parent_run_id
        self._tags = dict(tags)
        self._name = name
        self._children: dict[int, _Child] = {}
        self._work: deque[Callable[[], None]] = deque()
        self._error: Exception | None = None
        self._failed_s = 0.0
        # One thread: the writes of a run stay in order, and SQLite under MLflow sees one writer.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raymlops-children")

    def start(self, number: int, params: Mapping[str, Any]) -> None:
        """Open the run of a trial and log its parameters."""
        child = self._children[number] = _Child(flushed_s=time.monotonic())
        tags = {**self._tags, "raymlops.kind": "trial", "raymlops.trial": str(number)}

        def create() -> None:
            run_id = self._tracker.start_run(
                self._experiment, name=f"{self._name}-{number}", tags=tags, parent_run_id=self._parent_run_id
            )
            child.run_id.set_result(run_id)

        self._submit(create)
        self._submit(lambda: self._tracker.log_params(child.run_id.result(), flatten(dict(params))))

    def log(self, number: int, *, epoch: int, metrics: Mapping[str, float]) -> None:
        """Note the metrics of an epoch; they are sent together with later ones."""
        child = self._children[number]
        now_ms = int(time.time() * 1000)
        child.metrics += [(key, value, epoch, now_ms) for key, value in metrics.items()]
        if time.monotonic() - child.flushed_s >= FLUSH_S:
            self._flush(child)

    def end(self, number: int, status: TrialStatus, *, reason: str = "") -> None:
        """Send what is left and close the run of a trial."""
        child = self._children[number]
        self._flush(child)
        tags = {"raymlops.trial_status": status} | ({"raymlops.reason": reason[:5000]} if reason else {})
        self._submit(lambda: self._tracker.set_tags(child.run_id.result(), tags))
        self._submit(lambda: self._tracker.end_run(child.run_id.result(), RUN_STATUS[status]))

    def kill_parent(self) -> None:
        """Say of the sweep itself that it was interrupted."""
        self._submit(lambda: self._tracker.end_run(self._parent_run_id, "KILLED"))

    def run_id(self, number: int, *, wait_s: float = 5.0) -> str | None:
        """Return the run of a trial, or None while MLflow has not answered."""
        try:
            return self._children[number].run_id.result(timeout=0 if self._error else wait_s)
        except FutureTimeoutError:
            return None

    def close(self) -> None:
        """Write everything that is left, then end the thread.

        Raises:
            TrackingError: MLflow does not take it.
        """
        self._thread.submit(self._drain, force=True).result()
        self._thread.shutdown()
        if isinstance(self._error, TrackingError):
            raise self._error
        if self._error is not None:
            raise TrackingError(f"writing the trials to MLflow failed: {self._error!r}") from self._error

    def _flush(self, child: _Child) -> None:
        batch, child.metrics, child.flushed_s = child.metrics, [], time.monotonic()
        if batch:
            self._submit(lambda: self._tracker.log_metrics(child.run_id.result(), batch))

    def _submit(self, write: Callable[[], None]) -> None:
        self._work.append(write)
        self._thread.submit(self._drain)

    def _drain(self, *, force: bool = False) -> None:
        """Do what is waiting, in order, up to the first failure; after one, nothing for ``RETRY_S``."""
        if self._error is not None and not force and time.monotonic() - self._failed_s < RETRY_S:
            return
        while self._work:
            try:
                self._work[0]()
            except Exception as error:
                self._error, self._failed_s = error, time.monotonic()
                return
            self._work.popleft()
        self._error = None
