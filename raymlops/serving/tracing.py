"""Traces: a span for each request, sent to an OpenTelemetry collector over HTTP.

Owns which requests get a span, and how often a collector that does not answer is tried. Sending waits for the network,
so that this sink belongs into a recorder of its own. OpenTelemetry's environment variables for headers and
certificates (``OTEL_EXPORTER_OTLP_HEADERS`` and the like) count; credentials have no place in ``otlp_endpoint``.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from raymlops.serving.spans import Spans, parse_traceparent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from raymlops.predictions.served import Served

logger = logging.getLogger("ray.serve.raymlops")  # below Serve's logger, so that it reaches the replica's log

MAX_SPANS_PER_S = 100.0
"""A span costs about as much as a small request; requests beyond this many a second get none, and are counted."""
TIMEOUT_S = 5.0
"""For one batch of spans, the exporter's own repetitions included."""
HOLD_OFF_S = 60.0
"""A collector that did not take a batch is left alone for so long."""


class SpanExporter(Protocol):
    """What is used of OpenTelemetry's exporters."""

    def export(self, spans: Sequence[ReadableSpan], /) -> Any:
        """Send spans and say whether they arrived."""

    def shutdown(self) -> None:
        """Let go of connections."""


def missing_exporter() -> str | None:
    """Return what to install before ``otlp_endpoint`` can be used; None where nothing is missing."""
    try:
        found = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http")
    except ModuleNotFoundError:
        found = None
    if found is not None:
        return None
    return "serve.otlp_endpoint is set, but OpenTelemetry's exporter is not installed: pip install 'raymlops[otel]'"


def otlp_exporter(endpoint: str) -> SpanExporter:
    """Return an exporter to ``http(s)://HOST:4318``, with or without the path ``/v1/traces``.

    Raises:
        ModuleNotFoundError: the optional package ``opentelemetry-exporter-otlp-proto-http`` is not installed.
    """
    if text := missing_exporter():
        raise ModuleNotFoundError(text)
    module = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    base = endpoint.rstrip("/")
    url = base if base.endswith("/v1/traces") else f"{base}/v1/traces"
    exporter: SpanExporter = module.OTLPSpanExporter(endpoint=url, timeout=TIMEOUT_S)
    return exporter


class Tracing:
    """Send a span for each request to ``endpoint``; nothing without one.

    A caller's ``traceparent`` makes the span a child of the caller's, and decides whether there is one: not where it
    says that the trace is not sampled. Where the exporter cannot be made (it is not installed, say) that is
    logged once, and requests are served without spans. ``configure`` may be called from any thread.
    """

    def __init__(
        self,
        endpoint: str | None,
        *,
        name: str,
        version: int,
        replica: str,
        exporter: Callable[[str], SpanExporter] = otlp_exporter,
        max_spans_per_s: float = MAX_SPANS_PER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dropped = 0
        """Requests that should have had a span: over the rate, or the collector did not take it."""
        self._make_spans = partial(Spans, name=name, version=version, replica=replica)
        self._make_exporter = exporter
        self._rate = max_spans_per_s
        self._clock = clock
        self._allowance = max_spans_per_s
        self._last = clock()
        self._held_until = self._last
        self._wanted = endpoint
        self._opened: str | None = None
        self._exporter: SpanExporter | None = None
        self._spans: Spans | None = None

    def configure(self, endpoint: str | None) -> None:
        """Send to another collector from now on, or to none."""
        self._wanted = endpoint

    def take(self, batch: Sequence[Served]) -> None:
        """Send the spans of some requests.

        Raises:
            ConnectionError: the collector did not take them; they are lost, and it is left alone for a minute.
        """
        if self._wanted != self._opened:
            self._open(self._wanted)
        if self._exporter is None or self._spans is None or not batch:
            return
        now = self._clock()
        self._allowance = min(self._rate, self._allowance + (now - self._last) * self._rate)
        self._last = now
        for served in batch:
            parent = None if served.traceparent is None else parse_traceparent(served.traceparent)
            if parent is not None and not parent.sampled:
                continue
            if self._allowance < 1 or now < self._held_until:
                self.dropped += 1
                continue
            self._allowance -= 1
            self._spans.add(served, parent)
        self._send(self._exporter, self._spans.ended())

    def close(self) -> None:
        """Close the connection to the collector."""
        exporter, self._exporter = self._exporter, None
        if exporter is not None:
            exporter.shutdown()

    def _open(self, endpoint: str | None) -> None:
        self.close()
        self._opened = endpoint
        self._held_until = self._clock()
        if endpoint is None:
            return
        try:
            self._exporter = self._make_exporter(endpoint)
            self._spans = self._make_spans()
        except Exception as error:
            self._exporter = None
            logger.error("no traces from this replica: %s", error)  # noqa: TRY400 - the text says what to do

    def _send(self, exporter: SpanExporter, spans: Sequence[ReadableSpan]) -> None:
        if not spans:
            return
        arrived = False
        try:
            arrived = exporter.export(spans).name == "SUCCESS"
        finally:
            if not arrived:
                self.dropped += len(spans)
                self._held_until = self._clock() + HOLD_OFF_S
        if not arrived:
            msg = f"the collector at {self._opened} did not take {len(spans)} spans; next try in {HOLD_OFF_S:g} s"
            raise ConnectionError(msg)
