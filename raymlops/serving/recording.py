"""What a replica keeps of its requests: metrics, access log, traces, counts for rollouts, the prediction log.

Owns which sinks there are and what they are told. They work in threads of their own: the request path only appends to
queues.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.predictions.labels import LabelLog
from raymlops.predictions.log import PredictionLog
from raymlops.serving.accesslog import AccessLog, log_folder
from raymlops.serving.metrics import Metrics, Readings
from raymlops.serving.recorder import Recorder
from raymlops.serving.tally import Tally
from raymlops.serving.tracing import Tracing

if TYPE_CHECKING:
    from raymlops.predictions.served import Route, Served
    from raymlops.serving.core import Core
    from raymlops.serving.settings import Settings

PERIOD_S = 0.25
MAX_PENDING = 50_000
"""Requests that wait to be recorded at most; more are dropped and counted."""
LOG_CHUNK = 1000
"""The prediction log cuts what it is given into smaller parts itself."""


class Recording:
    """The recorders of one replica. ``configure`` must have been called before the first request."""

    def __init__(self, core: Core, *, replica: str) -> None:
        identity = core.identity
        name, version = identity.name, identity.version
        self._core = core
        self._access_log = AccessLog(log_folder(), name=name, version=version, replica=replica, enabled=False)
        self._tracing = Tracing(None, name=name, version=version, replica=replica)
        self._log = PredictionLog(core.settings.log, name=name, signature=core.model.signature, writer=replica)
        self._replica = replica
        self._labels: LabelLog | None = None
        self._labels_uri = ""
        light = (
            Metrics(name=name, version=version, read=self._read),
            self._access_log,
            Tally(
                name=name,
                replica=replica,
                traffic=lambda: core.settings.traffic,
                slow_s=lambda: core.settings.slow_s,
            ),
        )
        self._light = Recorder(light, period_s=PERIOD_S, max_pending=MAX_PENDING, name="light")
        # A storage or a collector may be slow or away, which must not hold back the metrics that say so.
        self._kept = Recorder((self._log,), period_s=PERIOD_S, max_pending=MAX_PENDING, name="log", chunk=LOG_CHUNK)
        self._traces = Recorder((self._tracing,), period_s=1.0, max_pending=2_000, name="traces", chunk=20)

    @property
    def labels(self) -> LabelLog | None:
        """Return where labels are kept, None where no log is."""
        return self._labels

    def configure(self, settings: Settings) -> None:
        """Take new settings."""
        self._access_log.enabled = settings.access_log
        self._tracing.configure(settings.otlp_endpoint)
        self._log.configure(settings.log)
        uri = settings.log.uri if settings.log.enabled else ""
        if uri != self._labels_uri:
            self._close_labels()
            self._labels_uri = uri
            if uri:
                self._labels = LabelLog(uri, name=self._core.identity.name, writer=self._replica)

    def add(self, served: Served) -> None:
        """Keep one request. Never waits, never raises."""
        self._light.add(served)
        settings = self._core.settings
        if served.outputs is not None and settings.log.enabled:
            self._kept.add(served)
        if settings.otlp_endpoint:
            self._traces.add(served)

    def close(self) -> None:
        """Write what is still held."""
        self._kept.close()
        self._light.close()
        self._traces.close()
        self._close_labels()

    def _close_labels(self) -> None:
        if self._labels is not None:
            self._labels.close()
            self._labels = None

    def _read(self) -> Readings:
        batcher = self._core.batcher
        batches = [batcher.observed.popleft() for _ in range(len(batcher.observed))]
        return Readings(
            queue_rows=batcher.waiting_rows,
            batches=batches,
            shares=self._shares(),
            shadow_dropped={version: counts.dropped for version, counts in dict(self._core.shadows).items()},
            log_pending_rows=self._log.pending_rows,
            log_dropped_rows=self._log.dropped,
            recorder_dropped=self._light.dropped + self._kept.dropped,
            recorder_errors=self._light.errors + self._kept.errors + self._traces.errors,
        )

    def _shares(self) -> dict[tuple[int, Route], float]:
        traffic = self._core.settings.traffic
        if not traffic.salt:  # only a champion has one: the others get what it sends them
            return {}
        left = 1.0 - sum(share.weight for share in traffic.canaries)
        return {
            (self._core.identity.version, "champion"): left,
            **{(share.version, "canary"): share.weight for share in traffic.canaries},
            **{(share.version, "shadow"): share.weight for share in traffic.shadows},
        }
