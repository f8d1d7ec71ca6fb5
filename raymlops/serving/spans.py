"""The OpenTelemetry span of a request that is over.

Owns what stands in a span and how a caller's trace context is read. Knows nothing of collectors (see ``tracing``). No
global state of OpenTelemetry is read or set; its environment variable for resource attributes counts.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
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
