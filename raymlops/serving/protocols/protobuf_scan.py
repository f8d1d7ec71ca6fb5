"""Fields of a ModelInferRequest, counted before protobuf makes an object of each. Pure.

Owns how many a message may have. Protobuf holds the interpreter, and so all other requests, until it has parsed all of
a message: 8 MB of empty inputs take it .2 s and 300 MB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from raymlops.serving.json_scan import most_values
from raymlops.serving.protocols.tensors import accepted_types
from raymlops.serving.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.signature import Signature

NOT_PROTOBUF = Refusal(400, "not_protobuf", "the message is not a request of the Open Inference Protocol")
_UNCOUNTED_BYTES = 8_192
"""A smaller message is parsed within a millisecond, whatever it has."""
_FIELDS = 64
"""Of a message, and of each of its tensors: names, shape and parameters."""
_TENSORS, _CONTENTS = frozenset({5, 6}), 5
"""Numbers of ``inputs`` and ``outputs`` in a request, and of ``contents`` in an input."""
_VARINTS = frozenset({2, 3, 4, 5})
_SIZES = {1: 1, 6: 4, 7: 8}
"""Of the packed elements of typed contents, in bytes; the others are varints, or texts."""


def refuse_too_many(body: bytes, signature: Signature, *, max_rows: int) -> None:
    """Refuse a request with more fields or elements than any valid one for this signature has.

    Raises:
        Refusal: 413, it has more; 400, it is no message.
    """
    if len(body) <= _UNCOUNTED_BYTES:
        return
    fields = _FIELDS * (1 + len(signature.inputs) + len(signature.outputs))
    most = most_values(signature.values_per_row, max_rows=max_rows)
    texts = sum("BYTES" in accepted_types(column) for column in signature.inputs)
    values, singles = 0, max_rows * (1 + texts)
    for number, start, stop in fields_of(body, 0, len(body)):
        fields -= 1
        inner = fields_of(body, start, stop) if number in _TENSORS else ()
        for part, begin, end in inner:
            # Numbers of a shape may be packed, or be a field each; what is in parameters counts as if it were fields.
            fields -= max(1, end - begin) if part in {3, 4} else 1
            if part == _CONTENTS:
                for count in _elements(body, begin, end):
                    values, singles = values + count, singles - (count < 2)
                    if values > most or singles < 0:
                        what = f"{most} elements, or of them {max_rows * (1 + texts)} that are not packed"
                        raise Refusal(413, "too_many_rows", f"the message has more than {what}")
            if fields < 0:
                break
        if fields < 0:
            raise Refusal(413, "too_many_fields", "the message has more inputs, outputs or parameters than the model")


def fields_of(body: bytes, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number of each field of a message, and where its value begins and ends.

    Raises:
        Refusal: 400, it is no message.
    """
    at = start
    while at < stop:
        tag, at = _varint(body, at, stop)
        kind = tag & 7
        if kind == 2:
            size, at = _varint(body, at, stop)
            end = at + size
        elif kind == 0:
            end = _varint(body, at, stop)[1]
        elif kind in {1, 5}:
            end = at + (8 if kind == 1 else 4)
        else:  # a group, which nobody has written for ten years
            raise NOT_PROTOBUF
        if end > stop:
            raise NOT_PROTOBUF
        yield tag >> 3, at, end
        at = end


def _elements(body: bytes, start: int, stop: int) -> Iterator[int]:
    for number, begin, end in fields_of(body, start, stop):
        if number in _VARINTS:  # one, where it is not packed
            yield max(1, int(np.count_nonzero(np.frombuffer(body, np.uint8, end - begin, begin) < 0x80)))
        else:
            yield max(1, (end - begin) // _SIZES.get(number, 1 << 62))


def _varint(body: bytes, at: int, stop: int) -> tuple[int, int]:
    value = shift = 0
    while at < stop and shift < 70:
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise NOT_PROTOBUF
