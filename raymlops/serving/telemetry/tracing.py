"""Traces: a span for each request, sent to an OpenTelemetry collector over HTTP.

Owns which requests get a span, its attributes, and the back-off from a collector that is down. OpenTelemetry's SDK
makes the spans, batches them and sends them in a thread of its own. Its environment variables for headers,
certificates, batches and resource attributes apply; credentials have no place in ``otlp_endpoint``. No global state of
OpenTelemetry is read or set: a recipe or Ray may have a tracer provider of its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import time
from typing import TYPE_CHECKING

import grpc
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from raymlops.serving.refusal import grpc_code

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from raymlops.predictions.served import RequestRecord

logger = logging.getLogger("ray.serve.raymlops")  # below Serve's logger, so that it reaches the replica's log

MAX_SPANS_PER_S = 100.0
"""A span costs about as much as a small request; requests beyond this rate get none."""
TIMEOUT_S = 5.0
"""For one batch of spans, the exporter's own retries included."""
HOLD_OFF_S = 60.0
"""How long no batch is sent to a collector that rejected one."""

_PROPAGATOR = TraceContextTextMapPropagator()
_MAX_TRACEPARENT = 512
"""The propagator logs a warning for each longer one."""
_PATHS = {"native": "predict", "oip": "v2/models/{name}/infer", "mlflow": "invocations", "feedback": "feedback"}
_GRPC_METHOD = "inference.GRPCInferenceService/ModelInfer"


def parse_traceparent(text: str | None) -> Context:
    """Return the context of a W3C ``traceparent``; an empty one, of which the request is the root span, if invalid."""
    if text is None or len(text) > _MAX_TRACEPARENT:
        return Context()
    return _PROPAGATOR.extract({"traceparent": text}, Context())


def trace_id_of(text: str | None) -> str | None:
    """Return the trace id in a W3C ``traceparent``, None without a valid one."""
    caller = trace.get_current_span(parse_traceparent(text)).get_span_context()
    return trace.format_trace_id(caller.trace_id) if caller.is_valid else None


def missing_exporter() -> str | None:
    """Return what to install before ``otlp_endpoint`` can be used; None where the exporter is installed."""
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

    A caller's ``traceparent`` makes the span a child of the caller's, and decides whether there is one: an unsampled
    trace gets none. Where the exporter cannot be created (it is not installed, say) that is logged once, and requests
    are served without spans. ``configure`` may be called from any thread.
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
        self._name = name
        self._resource = {
            "service.name": name,
            "service.namespace": "raymlops",
            "service.version": str(version),
            "service.instance.id": replica,
        }
        self._make_exporter = exporter
        self._rate = max_spans_per_s
        self._clock = clock
        self._allowance = max_spans_per_s
        self._last = clock()
        self._wanted = endpoint
        self._opened: str | None = None
        self._collector: Collector | None = None
        self._provider: TracerProvider | None = None

    @property
    def failures(self) -> int:
        """Return how often a collector rejected a batch of spans."""
        return 0 if self._collector is None else self._collector.failures

    def configure(self, endpoint: str | None) -> None:
        """Send to another collector from now on, or to none."""
        self._wanted = endpoint

    def take(self, batch: Sequence[RequestRecord]) -> None:
        """Make the spans of some requests."""
        if self._wanted != self._opened:
            self._open(self._wanted)
        if self._provider is None or not batch:
            return
        tracer = self._provider.get_tracer("raymlops")
        now = self._clock()
        self._allowance = min(self._rate, self._allowance + (now - self._last) * self._rate)
        self._last = now
        for served in batch:
            context = parse_traceparent(served.traceparent)
            caller = trace.get_current_span(context).get_span_context()
            if caller.is_valid and not caller.trace_flags.sampled:
                continue
            if self._allowance >= 1:
                self._allowance -= 1
                _record(tracer, served, context, self._name)

    def close(self) -> None:
        """Send what is left and close the connection to the collector."""
        provider, self._provider = self._provider, None
        if provider is not None:
            provider.shutdown()

    def _open(self, endpoint: str | None) -> None:
        self.close()
        self._opened = endpoint
        if endpoint is None:
            return
        try:
            exporter = self._make_exporter(endpoint)
        except Exception as error:
            logger.error("no traces from this replica: %s", error)  # noqa: TRY400 - the text says what to do
            return
        self._collector = Collector(exporter, endpoint, clock=self._clock, failures=self.failures)
        # The environment's sampler must not decide again whether a request gets a span.
        resource = Resource.create(self._resource)
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._collector))


class Collector(SpanExporter):
    """An exporter that leaves a collector alone for a minute after it rejected a batch, so that closing is quick."""

    def __init__(self, exporter: SpanExporter, endpoint: str, *, clock: Callable[[], float], failures: int = 0) -> None:
        self.failures = failures
        self._exporter = exporter
        self._endpoint = endpoint
        self._clock = clock
        self._held_until = clock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans; without a try while the collector is left alone."""
        if self._clock() < self._held_until:
            self.failures += 1
            return SpanExportResult.FAILURE
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            if result is not SpanExportResult.SUCCESS:
                self.failures += 1
                self._held_until = self._clock() + HOLD_OFF_S
                logger.warning(
                    "the collector at %s rejected %d spans; next try in %g s", self._endpoint, len(spans), HOLD_OFF_S
                )
        return result

    def shutdown(self) -> None:
        """Close the connection."""
        self._exporter.shutdown()


def _record(tracer: trace.Tracer, served: RequestRecord, context: Context, name: str) -> None:
    start_ns = int(served.ts * 1e9)
    span = tracer.start_span(
        _title(served, name),
        context,
        kind=trace.SpanKind.INTERNAL if served.route == "shadow" else trace.SpanKind.SERVER,
        attributes=_attributes(served, name),
        start_time=start_ns,
    )
    if served.status >= 500:
        span.set_status(trace.StatusCode.ERROR)
    span.end(end_time=start_ns + int(served.seconds * 1e9))


def _title(served: RequestRecord, name: str) -> str:
    if served.route == "shadow":
        return f"shadow {name}"
    return _GRPC_METHOD if served.protocol == "grpc" else f"POST {_path(served.protocol, name)}"


def _path(protocol: str, name: str) -> str:
    return f"/models/{name}/" + _PATHS.get(protocol, "").format(name=name)


def _grpc_status(status: int) -> str:
    name: str = next(code.name for code in grpc.StatusCode if code.value[0] == grpc_code(status))
    return name


def _attributes(served: RequestRecord, name: str) -> dict[str, str | int | float]:
    """Return the attributes of the semantic conventions for HTTP and RPC servers, and our own."""
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
        attributes["rpc.response.status_code"] = _grpc_status(served.status)
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
