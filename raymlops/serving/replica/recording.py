"""Telemetry of one replica: metrics, access log, traces, rollout counts and the prediction log.

Owns the list of sinks and their settings. They work in threads of their own: the request path only appends to queues.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from raymlops.predictions.labels import LabelLog
from raymlops.predictions.log import PredictionLog
from raymlops.serving.telemetry.access_log import AccessLog, log_folder
from raymlops.serving.telemetry.metrics import Metrics, Readings
from raymlops.serving.telemetry.rollout_counts import RolloutCounts, find_controller
from raymlops.serving.telemetry.sink_queue import CLOSE_S, Recorder
from raymlops.serving.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from pathlib import Path

    from raymlops.arrays import Columns
    from raymlops.predictions.served import RequestRecord, Route
    from raymlops.serving.replica.handler import RequestHandler
    from raymlops.serving.settings import Settings

PERIOD_S = 0.25
MAX_PENDING = 50_000
"""Maximum of queued requests; more are dropped and counted."""
LOG_CHUNK = 1000
"""Requests per batch of the prediction log, which then holds the interpreter for 2 to 4 ms.

Arrow releases it some fifty times per conversion, and each time the event loop wakes up and has to reacquire it:
batches of 128 cost a saturated replica 8 to 10% of its rate, of 1,000 they cost 3%.
"""

_NO_COLUMNS: Columns = {}
"""In place of a request's columns, for sinks that only need to know that it had some."""


class Recording:
    """The recorders of one replica. ``configure`` must have been called before the first request.

    ``folder`` is for the access log; by default Serve's own.
    """

    def __init__(self, handler: RequestHandler, *, replica: str, folder: Path | None = None) -> None:
        identity = handler.identity
        name, version = identity.name, identity.version
        self._handler = handler
        self._access_log = AccessLog(folder or log_folder(), name=name, version=version, replica=replica, enabled=False)
        self._tracing = Tracing(None, name=name, version=version, replica=replica)
        self._log = PredictionLog(handler.settings.log, name=name, signature=handler.model.signature, writer=replica)
        self._replica = replica
        self.labels: LabelLog | None = None
        """The storage of labels, None without a prediction log."""
        counts = RolloutCounts(
            name=name,
            replica=replica,
            traffic=lambda: handler.settings.traffic,
            slow_s=lambda: handler.settings.slow_s,
            find=lambda: find_controller(handler.settings.state),
        )
        light = (Metrics(name=name, version=version, read=self._read), self._access_log, counts)
        self._light = Recorder(light, period_s=PERIOD_S, max_pending=MAX_PENDING, name="light")
        # A storage or a collector may be slow or down, which must not delay the metrics that show it.
        self._kept = Recorder((self._log,), period_s=PERIOD_S, max_pending=MAX_PENDING, name="log", chunk=LOG_CHUNK)
        self._traces = Recorder((self._tracing,), period_s=1.0, max_pending=2_000, name="traces", chunk=20)
        self._recorders = (self._kept, self._light, self._traces)

    def configure(self, settings: Settings) -> None:
        """Apply new settings."""
        self._access_log.enabled = settings.access_log
        self._tracing.configure(settings.otlp_endpoint)
        self._log.configure(settings.log)
        uri = settings.log.uri if settings.log.enabled else ""
        if not uri:
            labels, self.labels = self.labels, None
            if labels is not None:
                labels.close()
        elif self.labels is None:
            name, state = self._handler.identity.name, settings.log.state
            self.labels = LabelLog(uri, name=name, writer=self._replica, state=state)
        else:
            self.labels.configure(uri, state=settings.log.state)

    def add(self, served: RequestRecord) -> None:
        """Record one request. Never waits, never raises."""
        settings = self._handler.settings
        if served.outputs is not None and settings.log.enabled:
            weight = settings.log.weight_of(served.request_id)
            if weight is not None:
                self._kept.add(served if weight == 1 else served._replace(weight=weight))
        # Queues are bounded by requests, and these sinks need no values, of which a full queue might hold gigabytes.
        facts = served._replace(columns=None if served.columns is None else _NO_COLUMNS, outputs=None)
        self._light.add(facts)
        if settings.otlp_endpoint:
            self._traces.add(facts)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Flush all sinks. What cannot be written within ``timeout_s`` in all is counted and logged."""
        until = time.monotonic() + timeout_s
        for recorder in self._recorders:
            recorder.stop()
        for recorder in self._recorders:
            recorder.close(until - time.monotonic())
        if self.labels is not None:
            self.labels.close(max(0.0, until - time.monotonic()))

    def _read(self) -> Readings:
        batcher = self._handler.batcher
        batches = [batcher.observed.popleft() for _ in range(len(batcher.observed))]
        return Readings(
            queue_rows=batcher.waiting_rows,
            batches=batches,
            shares=self._shares(),
            shadow_dropped=dict(self._handler.shadows.dropped),
            log_pending_rows=self._log.spool.pending_rows,
            log_dropped_rows=self._log.spool.dropped,
            recorder_dropped=self._light.dropped + self._kept.dropped,
            recorder_errors=sum(recorder.errors for recorder in self._recorders) + self._tracing.failures,
        )

    def _shares(self) -> dict[tuple[int, Route], float]:
        traffic = self._handler.settings.traffic
        if not traffic.salt:  # only a champion has one and splits traffic
            return {}
        left = 1.0 - sum(share.weight for share in traffic.canaries)
        return {
            (self._handler.identity.version, "champion"): left,
            **{(share.version, "canary"): share.weight for share in traffic.canaries},
            **{(share.version, "shadow"): share.weight for share in traffic.shadows},
        }
