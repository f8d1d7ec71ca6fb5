from __future__ import annotations

import json

import numpy as np
import pytest
from protocol_fakes import SIGNATURE, TYPES, answer, message, parse, predict, refused

from raymlops.errors import RowProblem
from raymlops.serving.protocols import grpc as form
from raymlops.serving.protocols import oip
from raymlops.serving.protocols.grpc import PROTOCOL
from raymlops.serving.protocols.grpc_messages import METHODS, request_class, response_class
from raymlops.serving.refusal import Refusal, grpc_code


def ask(request) -> Refusal:
    return refused(PROTOCOL, request.SerializeToString())


@pytest.mark.parametrize("raw", [True, False])
def test_an_answer_comes_in_the_form_of_the_request(raw):
    """Raw contents for raw ones, typed for typed; the numbers are the same."""
    body = message(raw=raw).SerializeToString()
    asked = parse(PROTOCOL, body)
    assert asked.request_id == "abc"
    response = response_class("ModelInfer").FromString(answer(PROTOCOL, body).body)
    assert (response.model_name, response.model_version, response.id) == ("wide", "7", "abc")
    assert bool(response.raw_output_contents) is raw
    expected = predict(asked.columns)
    outputs = {tensor.name: (index, tensor) for index, tensor in enumerate(response.outputs)}
    index, tensor = outputs["y"]
    values = np.frombuffer(response.raw_output_contents[index]) if raw else tensor.contents.fp64_contents
    assert list(values) == expected["y"].tolist()
    index, tensor = outputs["text"]
    if not raw:
        assert [text.decode() for text in tensor.contents.bytes_contents] == expected["text"].tolist()
    assert list(outputs["both"][1].shape) == [4, 2]


def test_typed_contents_have_smaller_integers_too():
    """INT8 to INT32 share a field, and are held to their range."""
    request = message(raw=False)
    tensor = next(tensor for tensor in request.inputs if tensor.name == "n")
    tensor.datatype = "INT8"
    tensor.ClearField("contents")
    tensor.contents.int_contents.extend([1, 2, 3, 127])
    assert parse(PROTOCOL, request.SerializeToString()).columns["n"].tolist() == [1, 2, 3, 127]
    tensor.contents.int_contents[3] = 128
    assert ask(request).problems[0].message == "expected INT8, got 128"


@pytest.mark.parametrize("body", [b"\xff", b"\x0a\xff\xff", b"\x0a\x02\xff\xfe", bytes(range(256)), b'{"inputs": []}'])
def test_what_is_no_message_is_refused(body):
    """gRPC itself would call it an internal error."""
    found = refused(PROTOCOL, body)
    assert found.status in {400, 422}


def _change(which, /, **values):
    def change(request):
        tensor = next(tensor for tensor in request.inputs if tensor.name == which)
        for key, value in values.items():
            if key == "shape":
                del tensor.shape[:]
                tensor.shape.extend(value)
            elif key.endswith("_contents"):
                getattr(tensor.contents, key).extend(value)
            else:
                setattr(tensor, key, value)

    return change


@pytest.mark.parametrize(
    ("raw", "change", "status", "text"),
    [
        (
            True,
            lambda request: request.raw_input_contents.pop(),
            400,
            "expected raw_input_contents for each of 9 inputs, got 8",
        ),
        (True, lambda request: request.raw_input_contents.append(b""), 400, "got 10"),
        (True, _change("x", fp64_contents=[1.0]), 400, "has contents and raw_input_contents"),
        (True, _change("x", shape=[3]), 400, "3 elements of FP64 need 24 bytes, got 32"),
        (True, _change("x", shape=[-1]), 422, "expected the shape [rows], got [-1]"),
        (True, _change("x", shape=[2**62]), 413, "rows; at most 100"),
        (True, _change("x", datatype="FP32"), 400, "4 elements of FP32 need 16 bytes, got 32"),
        (True, _change("x", datatype="BF16"), 422, "got 'BF16'"),
        (True, _change("x", name="n"), 422, "expected the datatype INT8"),
        (True, _change("x", name="z"), 422, "unknown tensor"),
        (True, lambda request: request.outputs.add(name="z"), 422, "unknown output; known: y, count"),
        (True, lambda request: request.ClearField("inputs"), 400, "each of 0 inputs, got 9"),
        (False, lambda request: request.ClearField("inputs"), 422, "expected at least one row"),
        (False, _change("x", shape=[3]), 422, "the shape has 3 elements, fp64_contents 4"),
        (False, _change("x", datatype="FP16"), 422, "FP16 has no typed contents"),
        (False, _change("x", fp32_contents=[1.0]), 422, "expected fp64_contents for FP64, got fp32_contents"),
        (False, _change("x", datatype="FP32"), 422, "expected fp32_contents for FP32, got fp64_contents"),
        (False, lambda request: request.inputs[0].ClearField("contents"), 422, "the shape has 4 elements"),
    ],
)
def test_a_bad_request_is_refused(raw, change, status, text):
    """As over HTTP."""
    request = message(raw=raw)
    change(request)
    found = ask(request)
    assert found.status == status
    assert text in found.message


def test_texts_are_utf8():
    """An element that is not is named by its row."""
    request = message(raw=False)
    tensor = next(tensor for tensor in request.inputs if tensor.name == "s")
    tensor.contents.bytes_contents[2] = b"\xff"
    assert (ask(request).problems[0].row, ask(request).problems[0].field) == (2, "s")


def test_requests_say_which_model_they_are_about():
    """By which a request that came to the host is handed on."""
    assert form.model_of(message().SerializeToString()) == ("wide", "7")
    ready = request_class("ModelReady")(name="wide").SerializeToString()
    assert form.model_of(ready) == ("wide", "")
    assert form.model_of(b"") == ("", "")
    with pytest.raises(Refusal) as caught:
        form.model_of(b"\xff")
    assert (caught.value.status, caught.value.code) == (400, "not_protobuf")


def test_the_model_of_a_message_is_found_without_reading_its_tensors():
    """There may be millions, each an object; here one that is no tensor is left to whoever reads them."""
    body = message().SerializeToString() + b"\x2a\x01\xff"
    assert form.model_of(body) == ("wide", "7")
    assert refused(PROTOCOL, body).code == "not_protobuf"


def test_only_the_first_of_many_unknown_outputs_are_problems():
    """Of 1,500 in 8 kB, which are not counted before they are parsed."""
    body = message().SerializeToString() + b"\x32\x03\x0a\x01z" * 1_500
    assert len(refused(PROTOCOL, body).problems) == 20


def test_helpers_answer_the_other_methods():
    """Liveness, readiness and metadata."""
    for method in METHODS[:3]:
        read = response_class(method).FromString
        assert str(read(form.ready(method, ready=True))).split() == [
            ("live:" if "Live" in method else "ready:"),
            "true",
        ]
    assert response_class("ServerMetadata").FromString(form.server_metadata()).name == "raymlops"
    described = response_class("ModelMetadata").FromString(form.model_metadata(oip.metadata(SIGNATURE, "wide", ["7"])))
    assert {tensor.name: tensor.datatype for tensor in described.inputs} == TYPES
    assert list(described.inputs[7].shape) == [-1, 2, 2]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (200, "OK"),
        (400, "INVALID_ARGUMENT"),
        (401, "UNAUTHENTICATED"),
        (403, "PERMISSION_DENIED"),
        (404, "NOT_FOUND"),
        (413, "RESOURCE_EXHAUSTED"),
        (415, "INVALID_ARGUMENT"),
        (422, "INVALID_ARGUMENT"),
        (429, "RESOURCE_EXHAUSTED"),
        (500, "INTERNAL"),
        (503, "UNAVAILABLE"),
        (504, "DEADLINE_EXCEEDED"),
    ],
)
def test_statuses_have_a_code(status, code):
    """The number is the one that gRPC's own enumeration has."""
    from grpc import StatusCode

    assert StatusCode[code].value[0] == grpc_code(status)


def test_details_are_the_one_error_and_fit_a_header():
    """ASCII JSON, with fewer problems where there would be too many."""
    few = Refusal(422, "invalid_rows", "caf\u00e9 \U0001f600", problems=[RowProblem(1, "x", "bad")])
    assert form.details(few, "abc").isascii()
    assert json.loads(form.details(few, "abc")) == {
        "error": {
            "code": "invalid_rows",
            "message": "caf\u00e9 \U0001f600",
            "field": "x",
            "problems": [{"row": 1, "field": "x", "message": "bad"}],
        },
        "request_id": "abc",
    }
    many = Refusal(422, "invalid_rows", "\u00e9" * 5000, problems=[RowProblem(1, "\u00e9" * 80, "\u00e9" * 1000)] * 20)
    details = form.details(many, "abc")
    assert len(details) <= 3500
    assert len(json.loads(details)["error"]["problems"]) >= 1
