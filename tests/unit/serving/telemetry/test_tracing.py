from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, get_tracer_provider

from raymlops.predictions.served import RequestRecord
from raymlops.serving.telemetry.tracing import Collector, Tracing, missing_exporter, trace_id_of

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-01"


def served(**more) -> RequestRecord:
    facts = {
        "request_id": "r1",
        "ts": 1_700_000_000.5,
        "version": 7,
        "route": "champion",
        "protocol": "native",
        "status": 200,
        "code": "",
        "rows": 2,
        "body_bytes": 345,
        "seconds": 0.25,
        "model_seconds": 0.125,
    }
    return RequestRecord(**(facts | more))


def tracing(exporter, endpoint="http://collector:4318", **more) -> Tracing:
    return Tracing(endpoint, name="flights", version=7, replica="abc", exporter=lambda _endpoint: exporter, **more)


def spans_of(*batch, **more):
    exporter = InMemorySpanExporter()
    sink = tracing(exporter, **more)
    sink.take(batch)
    sink.close()
    return exporter.get_finished_spans()


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (SAMPLED, True),
        (f"00-{TRACE_ID}-{SPAN_ID}-00", True),
        (f" 00-{TRACE_ID}-{SPAN_ID}-03\t", True),
        (f"01-{TRACE_ID}-{SPAN_ID}-01-more", True),  # a later version may add fields
        (f"00-{TRACE_ID}-{SPAN_ID}-01-more", False),
        (f"ff-{TRACE_ID}-{SPAN_ID}-01", False),
        (f"00-{'0' * 32}-{SPAN_ID}-01", False),
        (f"00-{TRACE_ID}-{'0' * 16}-01", False),
        (f"00-{TRACE_ID.upper()}-{SPAN_ID}-01", False),
        ("00-" + "\u0660" * 32 + f"-{SPAN_ID}-01", False),  # digits, but not ASCII
        ("x" * 100_000, False),
        ("", False),
        (None, False),
    ],
)
def test_a_trace_context_is_read_as_the_standard_says(text, valid, caplog):
    """Whatever a client sends, nothing is raised or logged."""
    assert trace_id_of(text) == (TRACE_ID if valid else None)
    assert caplog.records == []


def test_a_span_has_the_requests_times_and_its_callers_trace():
    """It starts when the request came, ends when it was answered, and belongs to the caller's span."""
    (span,) = spans_of(served(traceparent=SAMPLED, key_id="k3"))
    assert span.name == "POST /models/flights/predict"
    assert span.kind is SpanKind.SERVER
    assert (span.start_time, span.end_time) == (1_700_000_000_500_000_000, 1_700_000_000_750_000_000)
    assert (span.parent.trace_id, span.parent.span_id) == (int(TRACE_ID, 16), int(SPAN_ID, 16))
    assert span.context.trace_id == int(TRACE_ID, 16)
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "http.route": "/models/flights/predict",
        "http.response.status_code": 200,
        "http.request.body.size": 345,
        "raymlops.model": "flights",
        "raymlops.model_version": 7,
        "raymlops.route": "champion",
        "raymlops.protocol": "native",
        "raymlops.request_id": "r1",
        "raymlops.rows": 2,
        "raymlops.model_seconds": 0.125,
        "raymlops.key_id": "k3",
    }
    assert {"service.name": "flights", "service.version": "7"}.items() <= dict(span.resource.attributes).items()


def test_only_what_went_wrong_with_us_is_an_error():
    """A refused request is a plain span, a failed one an error with its reason."""
    refused, failed = spans_of(served(status=422, code="invalid_rows"), served(status=500, code="model_error"))
    assert refused.status.status_code is StatusCode.UNSET
    assert "error.type" not in refused.attributes
    assert refused.attributes["raymlops.code"] == "invalid_rows"
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.attributes["error.type"] == "model_error"


def test_grpc_and_shadows_have_their_own_kinds_of_span():
    """A gRPC call is named by its method, a shadow's copy is internal."""
    call, shadow = spans_of(served(protocol="grpc", status=503), served(route="shadow", version=9))
    assert call.name == call.attributes["rpc.method"] == "inference.GRPCInferenceService/ModelInfer"
    assert call.attributes["rpc.response.status_code"] == "UNAVAILABLE"
    assert shadow.kind is SpanKind.INTERNAL
    assert "http.route" not in shadow.attributes


def test_the_caller_decides_and_otherwise_every_request_gets_a_trace():
    """Of an unsampled, a malformed and no context, the last two are first spans of traces of their own."""
    unsampled = served(traceparent=f"00-{TRACE_ID}-{SPAN_ID}-00")
    spans = spans_of(unsampled, served(traceparent="nonsense"), served())
    assert [span.parent for span in spans] == [None, None]
    assert len({span.context.trace_id for span in spans}) == 2


def test_spans_are_bounded_by_the_second():
    """With ten a second, 10 of 25 get one at once, and five more half a second later."""
    now, exporter = [0.0], InMemorySpanExporter()
    sink = tracing(exporter, max_spans_per_s=10, clock=lambda: now[0])
    sink.take([served()] * 25)
    now[0] = 0.5
    sink.take([served()] * 25)
    sink.close()
    assert len(exporter.get_finished_spans()) == 15


class Deaf:
    """An exporter to a collector that takes nothing."""

    def __init__(self) -> None:
        self.tries = 0
        self.closed = False

    def export(self, spans):
        self.tries += 1
        return SpanExportResult.FAILURE

    def shutdown(self):
        self.closed = True


def test_a_collector_that_rejects_spans_is_left_alone_for_a_minute(caplog):
    """It is logged once, the batches meanwhile are dropped without a try, and all of them are counted."""
    now, exporter = [0.0], Deaf()
    collector = Collector(exporter, "http://collector", clock=lambda: now[0])
    with caplog.at_level(logging.WARNING, logger="ray.serve.raymlops"):
        for at, tries in ((0.0, 1), (59.0, 1), (60.0, 2)):
            now[0] = at
            assert collector.export([None]) is SpanExportResult.FAILURE
            assert exporter.tries == tries
    assert collector.failures == 3
    assert [record.getMessage() for record in caplog.records] == [
        "the collector at http://collector rejected 1 spans; next try in 60 s"
    ] * 2


def test_what_a_collector_rejects_is_counted_and_raises_nothing():
    """Closing sends what is left."""
    exporter = Deaf()
    sink = tracing(exporter)
    sink.take([served()])
    sink.close()
    assert (exporter.tries, exporter.closed, sink.failures) == (1, True, 1)


def test_a_missing_exporter_is_said_once_and_harms_nothing(caplog):
    """Requests are served without spans, and the log says what to install."""

    def missing(_endpoint):
        raise ModuleNotFoundError("pip install 'raymlops[otel]'")

    sink = Tracing("http://collector", name="flights", version=7, replica="abc", exporter=missing)
    with caplog.at_level(logging.ERROR, logger="ray.serve.raymlops"):
        sink.take([served()])
        sink.take([served()])
    sink.close()
    assert [record.getMessage() for record in caplog.records] == [
        "no traces from this replica: pip install 'raymlops[otel]'"
    ]


def test_it_can_be_pointed_elsewhere_while_it_runs():
    """Without an endpoint there are no spans; with one there are; the old connection is closed."""
    made: dict[str, Deaf | InMemorySpanExporter] = {"http://a": InMemorySpanExporter(), "http://b": Deaf()}
    sink = Tracing(None, name="flights", version=7, replica="abc", exporter=made.__getitem__)
    sink.take([served()])
    sink.configure("http://a")
    sink.take([served()])
    sink.configure("http://b")
    sink.take([])
    assert len(made["http://a"].get_finished_spans()) == 1
    sink.configure(None)
    sink.take([served()])
    assert made["http://b"].closed
    assert made["http://b"].tries == 0


def test_nothing_global_is_set():
    """A recipe or Ray may have a provider of its own."""
    before = get_tracer_provider()
    assert spans_of(served())
    assert get_tracer_provider() is before


@contextmanager
def collector():
    """Run an OTLP collector over HTTP; yields its address and what it got."""
    got: list[tuple[str, ExportTraceServiceRequest]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.skipif(missing_exporter() is not None, reason="needs raymlops[otel]")
@pytest.mark.parametrize("path", ["", "/", "/v1/traces"])
def test_a_real_collector_gets_otlp_over_http(path):
    """What arrives decodes as OTLP, with the request's trace, times and attributes."""
    with collector() as (address, got):
        sink = Tracing(address + path, name="flights", version=7, replica="abc")
        sink.take([served(traceparent=SAMPLED), served(status=500, code="model_error")])
        sink.close()
    ((where, request),) = got
    assert where == "/v1/traces"
    (resource,) = request.resource_spans
    assert "flights" in {item.value.string_value for item in resource.resource.attributes if item.key == "service.name"}
    first, second = resource.scope_spans[0].spans
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (TRACE_ID, SPAN_ID)
    assert first.end_time_unix_nano - first.start_time_unix_nano == 250_000_000
    assert (second.parent_span_id, second.status.code) == (b"", 2)  # 2: STATUS_CODE_ERROR
