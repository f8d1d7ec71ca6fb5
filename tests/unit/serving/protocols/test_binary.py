from __future__ import annotations

import json

import numpy as np
import pytest
from protocol_fakes import ROWS, answer, binary_body, parse, predict, refused, tensors

from raymlops.serving.protocols.base import BINARY
from raymlops.serving.protocols.binary import HEADER, read_tensor, write_tensor
from raymlops.serving.protocols.oip import PROTOCOL


def test_bytes_and_json_give_the_same_columns_and_answers():
    """What a binary client sends is what it would have sent in JSON, and so is the answer."""
    from_bytes = parse(PROTOCOL, *binary_body()).columns
    from_json = parse(PROTOCOL, json.dumps({"inputs": tensors()}).encode()).columns
    for name in from_json:
        np.testing.assert_array_equal(np.stack(list(from_bytes[name])), np.stack(list(from_json[name])))
    encoded = answer(PROTOCOL, *binary_body())
    assert encoded.kind == BINARY
    length = int(dict(encoded.headers)[HEADER])
    outputs = {tensor["name"]: tensor for tensor in json.loads(encoded.body[:length])["outputs"]}
    sizes = [tensor["parameters"]["binary_data_size"] for tensor in outputs.values()]
    assert length + sum(sizes) == len(encoded.body)
    y = np.frombuffer(encoded.body[length:], dtype="<f8", count=4)
    assert y.tolist() == predict(from_json)["y"].tolist()


def test_each_output_is_in_the_form_that_was_asked_for():
    """The request says one form for all, an output may say another."""
    wanted = [{"name": "y"}, {"name": "count", "parameters": {"binary_data": False}}]
    encoded = answer(PROTOCOL, *binary_body(outputs=wanted))
    length = int(dict(encoded.headers)[HEADER])
    first, second = json.loads(encoded.body[:length])["outputs"]
    assert first["parameters"] == {"binary_data_size": 32}
    assert second["data"] == [2**53 + 1, 2**53 + 1, 2**53 + 3, 2**53 + 3]


def test_columns_are_writable():
    """torch.from_numpy warns of read-only memory, which a view of the request's bytes would be."""
    columns = parse(PROTOCOL, *binary_body()).columns
    assert all(array.flags.writeable and array.flags.aligned for array in columns.values())


@pytest.mark.parametrize(
    "value", [b"", b"-1", b"+5", b"1e3", b"0x10", b"1 2", b"99999999", b"9" * 4000, b"\xb2", b"nan"]
)
def test_a_bad_header_is_refused(value):
    """It is a number of bytes that the body has."""
    body, _ = binary_body()
    found = refused(PROTOCOL, body, {HEADER: value})
    assert (found.status, found.code) == (400, "bad_inference_header")


def test_a_missing_or_wrong_header_is_refused():
    """Without it the body is no JSON; one that is a little off cuts JSON or tensors at the wrong place."""
    body, headers = binary_body()
    length = int(headers[HEADER])
    assert refused(PROTOCOL, body).status == 400
    assert refused(PROTOCOL, body, {HEADER: str(length - 1).encode()}).code == "not_json"
    assert refused(PROTOCOL, body, {HEADER: b"0"}).code == "empty_body"
    assert refused(PROTOCOL, body[:length], {}).code == "bad_binary_data"


@pytest.mark.parametrize(
    ("change", "tail", "status", "text"),
    [
        ({}, b"\x00", 400, "1 bytes follow the last tensor"),
        ({"tokens": {"size": 97}}, b"", 400, "has 97 bytes, of which 96 follow"),
        ({"x": {"size": 24}}, b"", 400, "4 elements of FP64 need 32 bytes, got 24"),
        ({"x": {"size": -1}}, b"", 422, "to be an integer"),
        ({"x": {"size": True}}, b"", 422, "to be an integer"),
        ({"x": {"size": 32.0}}, b"", 422, "to be an integer"),
        ({"x": {"size": 2**63}}, b"", 400, "of which"),
        ({"x": {"size": 10**30}}, b"", 422, "to be an integer"),
        ({"x": {"tensor": {"data": [1, 2, 3, 4]}}}, b"", 422, 'and no "data" with it'),
        ({"x": {"tensor": {"shape": [10**9]}}}, b"", 413, "got 1000000000 rows"),
        ({"x": {"raw": np.array([1, np.nan, 3, 4]).tobytes()}}, b"", 422, "expected a finite number, got nan"),
        (
            {"w": {"raw": np.array([1, -np.inf, 3, 4]).tobytes()}},
            b"",
            422,
            "expected a finite number or null, got -inf",
        ),
        ({"k": {"raw": np.array([1, 2.5, 3, 4]).tobytes()}}, b"", 422, "expected an integer or null, got 2.5"),
        ({"k": {"raw": np.array([1, 1e19, 3, 4]).tobytes()}}, b"", 422, "expected an integer or null, got 1e+19"),
        ({"b": {"raw": b"\x00\x01\x02\x01"}}, b"", 422, "expected a byte of 0 or 1, got 2 at element 2"),
        ({"s": {"raw": b"\x03\x00\x00\x00EW"}}, b"", 400, "4 elements of BYTES need at least 16 bytes, got 6"),
        ({"s": {"raw": b"\x03\x00\x00\x00EWR" * 3 + b"\xff\xff\xff\xffEWR"}}, b"", 400, "element 3 of 4 ends after"),
        ({"s": {"raw": b"\x03\x00\x00\x00EWR" * 3 + b"\x03\x00\x00"}}, b"", 400, "element 3 of 4 ends after"),
        ({"s": {"raw": b"\x03\x00\x00\x00EWR" * 5}}, b"", 400, "7 bytes follow its last element"),
        ({"s": {"raw": b"\x02\x00\x00\x00\xff\xfe" * 4}}, b"", 422, "expected UTF-8"),
    ],
)
def test_bytes_that_are_not_what_was_said_are_refused(change, tail, status, text):
    """Truncated, overlong, or no values of their column."""
    found = refused(PROTOCOL, *binary_body(change=change, tail=tail))
    assert found.status == status
    assert text in found.message


def test_truncation_anywhere_is_a_refusal():
    """A body cut at any byte is refused, and raises nothing else."""
    body, headers = binary_body(ROWS[:1])
    for length in range(len(body)):
        assert refused(PROTOCOL, body[:length], headers).status in {400, 422}


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "INT8", "INT64", "UINT16", "BOOL"])
def test_no_elements_are_no_bytes(datatype):
    """A free dimension of length 0 has none."""
    assert read_tensor("t", datatype, 0, memoryview(b"")).tolist() == []


def test_texts_go_after_their_length():
    """Two bytes of UTF-8 for one letter; a missing text is an empty one."""
    assert write_tensor(np.array(["\u00e9", None, "ab"], dtype=object)) == (
        b"\x02\x00\x00\x00\xc3\xa9" + b"\x00\x00\x00\x00" + b"\x02\x00\x00\x00ab"
    )
