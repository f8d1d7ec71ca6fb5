"""Traces: a span for each request, sent to an OpenTelemetry collector over HTTP.

Owns which requests get a span, and how often a collector that does not answer is tried. Sending waits for the network,
so that this sink belongs into a recorder of its own. OpenTelemetry's environment variables for headers and
certificates (``OTEL_EXPORTER_OTLP_HEADERS`` and the like) count; credentials have no place in ``otlp_endpoint``.

The OpenTelemetry span of a request that is over.

Owns what stands in a span and how a caller's trace context is read. Knows nothing of collectors (see ``tracing``). No
global state of OpenTelemetry is read or set; its environment variable for resource attributes counts.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Tracer

    from raymlops.predictions.served import Served


_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_PATHS = {"native": "predict", "oip": "v2/models/{name}/infer", "mlflow": "invocations", "feedback": "feedback"}
_GRPC_METHOD = "inference.GRPCInferenceService/ModelInfer"
_GRPC_STATUS = {
    200: "OK",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class Parent(NamedTuple):
    """The caller's span, as a W3C ``traceparent`` names it."""

    trace_id: int
    span_id: int
    sampled: bool

    @property
    def trace_id_text(self) -> str:
        """Return the trace's id as 32 hexadecimal digits."""
        return f"{self.trace_id:032x}"


def parse_traceparent(text: str) -> Parent | None:
    """Return the caller's span; None for what is none: the request is then the first span of a trace of its own."""
    found = _TRACEPARENT.fullmatch(text.strip(" \t")) if len(text) <= 512 else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more is not None):
        return None
    if not int(trace_id, 16) or not int(span_id, 16):
        return None
    return Parent(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & 1))


class Spans:
    """Make the spans of one replica's requests, by OpenTelemetry's SDK under a provider that nobody else knows."""

    def __init__(self, *, name: str, version: int, replica: str) -> None:
        self._name = name
        self._ended: list[ReadableSpan] = []
        self._tracer = _tracer(
            {
                "service.name": name,
                "service.namespace": "raymlops",
                "service.version": str(version),
                "service.instance.id": replica,
            },
            self._ended,
        )

    def add(self, served: Served, parent: Parent | None) -> None:
        """Make the span of one request, a child of ``parent`` where it has one."""
        from opentelemetry import trace
        from opentelemetry.context import Context

        context = Context()  # not the thread's current one
        if parent is not None:
            flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
            remote = trace.SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=flags)
            context = trace.set_span_in_context(trace.NonRecordingSpan(remote), context)
        start_ns = int(served.ts * 1e9)
        span = self._tracer.start_span(
            _title(served, self._name),
            context,
            kind=trace.SpanKind.INTERNAL if served.route == "shadow" else trace.SpanKind.SERVER,
            attributes=_attributes(served, self._name),
            start_time=start_ns,
        )
        if served.status >= 500:
            span.set_status(trace.StatusCode.ERROR)
        span.end(end_time=start_ns + int(served.seconds * 1e9))

    def ended(self) -> list[ReadableSpan]:
        """Return the spans made since the last call."""
        spans = self._ended[:]
        self._ended.clear()
        return spans


def _title(served: Served, name: str) -> str:
    if served.route == "shadow":
        return f"shadow {name}"
    return _GRPC_METHOD if served.protocol == "grpc" else f"POST {_path(served.protocol, name)}"


def _path(protocol: str, name: str) -> str:
    return f"/models/{name}/" + _PATHS.get(protocol, "").format(name=name)


def _attributes(served: Served, name: str) -> dict[str, str | int | float]:
    """Return attributes by the semantic conventions for HTTP and RPC servers, and our own."""
    attributes: dict[str, str | int | float] = {
        "raymlops.model": name,
        "raymlops.model_version": served.version,
        "raymlops.route": served.route,
        "raymlops.protocol": served.protocol,
        "raymlops.request_id": served.request_id,
        "raymlops.rows": served.rows,
        "raymlops.model_seconds": served.model_seconds,
    }
    if served.route != "shadow" and served.protocol == "grpc":
        attributes["rpc.system.name"] = "grpc"
        attributes["rpc.method"] = _GRPC_METHOD
        attributes["rpc.response.status_code"] = _GRPC_STATUS.get(served.status, "INVALID_ARGUMENT")
    elif served.route != "shadow":
        attributes["http.request.method"] = "POST"
        attributes["http.route"] = _path(served.protocol, name)
        attributes["http.response.status_code"] = served.status
        attributes["http.request.body.size"] = served.body_bytes
    optional = {
        "raymlops.code": served.code or None,
        "raymlops.key_id": served.key_id,
        "raymlops.fallback_from": served.fallback_from,
        "error.type": served.code or str(served.status) if served.status >= 500 else None,
    }
    attributes.update({key: value for key, value in optional.items() if value is not None})
    return attributes


def _tracer(resource: dict[str, str], ended: list[ReadableSpan]) -> Tracer:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    class Collect(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            ended.append(span)

    # Whether a request gets a span has been decided before: the environment's sampler must not decide again.
    provider = TracerProvider(sampler=ALWAYS_ON, resource=Resource.create(resource), shutdown_on_exit=False)
    provider.add_span_processor(Collect())
    return provider.get_tracer("raymlops")


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
