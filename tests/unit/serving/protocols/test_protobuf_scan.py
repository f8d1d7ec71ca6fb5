"""Messages that protobuf would parse, and hold the interpreter for."""

from __future__ import annotations

import numpy as np
import pytest

from raymlops.arrays import Column
from raymlops.serving.protocols.grpc_messages import request_class
from raymlops.serving.protocols.protobuf_scan import fields_of, refuse_too_many
from raymlops.serving.refusal import Refusal
from raymlops.signature import Signature

SIGNATURE = Signature((Column("x", "float"), Column("t", "string")), (Column("y", "float"),))
MAX_ROWS = 100


def varint(number):
    found = b""
    while number > 127:
        found, number = found + bytes((number & 127 | 128,)), number >> 7
    return found + bytes((number,))


def within(number, value):
    """Return a field with a value of a length."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def contents(value):
    return within(5, within(5, value))


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"\x2a\x00" * 5_000, "too_many_fields"),  # inputs
        (b"\x32\x00" * 5_000, "too_many_fields"),  # outputs
        (b"\x3a\x00" * 5_000, "too_many_fields"),  # raw contents
        (b"\x22\x00" * 5_000, "too_many_fields"),  # parameters
        (b"\x0a\x00" * 5_000, "too_many_fields"),  # names
        (b"\x7a\x00" * 5_000, "too_many_fields"),  # unknown
        (within(5, b"\x22\x00" * 5_000), "too_many_fields"),  # parameters of an input
        (within(6, b"\x12\x00" * 5_000), "too_many_fields"),  # parameters of an output
        (within(4, bytes(9_000)) + within(5, within(4, bytes(9_000))), "too_many_fields"),
        (within(5, b"\x18\x01" * 5_000), "too_many_fields"),  # a shape, a field each
        (within(5, within(3, b"\x01" * 9_000)), "too_many_fields"),  # and packed
        (within(5, b"\x2a\x00" * 5_000), "too_many_fields"),  # contents that are merged
        (contents(b"\x42\x00" * 5_000), "too_many_rows"),  # texts
        (contents(b"\x08\x01" * 5_000), "too_many_rows"),  # numbers, a field each
        (contents(within(3, b"\x01" * 11_000)), "too_many_rows"),  # and packed
        (contents(within(7, bytes(8 * 11_000))), "too_many_rows"),
        (b"\x7b\x7c" * 5_000, "not_protobuf"),  # groups
        (b"\x2a\xff\xff\xff\x7f" * 2_000, "not_protobuf"),
        (b"\xff" * 9_000, "not_protobuf"),
    ],
)
def test_what_no_valid_message_has_is_refused(body, code):
    """By its fields, which are not made; 100 rows of two columns have 10,400 elements at most, texts of 200 rows."""
    with pytest.raises(Refusal) as caught:
        refuse_too_many(body, SIGNATURE, max_rows=MAX_ROWS)
    assert caught.value.code == code


def test_a_message_of_the_largest_size_passes():
    """In typed and in raw contents, with parameters."""
    for raw in (True, False):
        request = request_class("ModelInfer")(model_name="m", id="a" * 5_000)
        request.parameters["p"].string_param = "x" * 40
        x = request.inputs.add(name="x", datatype="FP64", shape=[MAX_ROWS])
        t = request.inputs.add(name="t", datatype="BYTES", shape=[MAX_ROWS])
        request.outputs.add(name="y")
        if raw:
            request.raw_input_contents.extend([np.ones(MAX_ROWS).tobytes(), bytes(100 * MAX_ROWS)])
        else:
            x.contents.fp64_contents.extend([1.0] * MAX_ROWS)
            t.contents.bytes_contents.extend([bytes(100)] * MAX_ROWS)
        body = request.SerializeToString()
        assert len(body) > 8_192
        refuse_too_many(body, SIGNATURE, max_rows=MAX_ROWS)


def test_fields_are_found_where_they_are():
    """Of each kind: a number, eight bytes, a length, four bytes."""
    body = b"\x08\x96\x01" + b"\x11" + bytes(8) + b"\x1a\x02hi" + b"\x25" + bytes(4)
    assert list(fields_of(body, 0, len(body))) == [(1, 1, 3), (2, 4, 12), (3, 14, 16), (4, 17, 21)]
