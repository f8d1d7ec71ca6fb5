"""Tensors as bytes: the binary tensor extension over HTTP, and raw contents over gRPC.

Owns how elements lie in memory: little-endian, row by row, BOOL as one byte of 0 or 1, each BYTES element after its
length in four bytes. Knows nothing of what the tensors mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.errors import RowProblem
from raymlops.serving.protocols.json_body import invalid
from raymlops.serving.protocols.tensors import NUMPY_TYPES, elements
from raymlops.serving.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    Array = npt.NDArray[Any]

HEADER = b"inference-header-content-length"
"""Header with the length of the JSON in bytes; tensors follow."""


def split_body(body: bytes, headers: Mapping[bytes, bytes]) -> tuple[bytes, memoryview | None]:
    """Return the JSON part of a body and the bytes after it, None without the header.

    Raises:
        Refusal: 400, the header is not a number, or exceeds the body.
    """
    given = headers.get(HEADER)
    if given is None:
        return body, None
    text = given.strip()
    if not text.isdigit() or len(text) > 18 or int(text) > len(body):
        got = text[:40].decode("latin-1")
        message = f"expected a number of bytes from 0 to {len(body)} in {HEADER.decode()}, got {got!r}"
        raise Refusal(400, "bad_inference_header", message)
    return body[: int(text)], memoryview(body)[int(text) :]


def read_tensor(name: str, datatype: str, count: int, raw: bytes | memoryview) -> Array:
    """Return the elements of a tensor as a flat array: a view of ``raw`` where they have a fixed size.

    Raises:
        Refusal: 400, the number of bytes does not match the elements; 422, an element is not a BOOL.
    """
    if datatype == "BYTES":
        return elements(_split_elements(name, count, raw))
    dtype = NUMPY_TYPES[datatype]
    if len(raw) != count * dtype.itemsize:
        need = f"{count} elements of {datatype} need {count * dtype.itemsize} bytes"
        raise bad_data(f"the tensor {name!r}: {need}, got {len(raw)}")
    if datatype != "BOOL":
        return np.frombuffer(raw, dtype=dtype)
    octets = np.frombuffer(raw, dtype=np.uint8)
    if octets.size and octets.max() > 1:
        place = int(np.argmax(octets > 1))
        raise invalid([RowProblem(None, name, f"expected a byte of 0 or 1, got {octets[place]} at element {place}")])
    return octets.view(np.bool_)


def write_tensor(array: Array) -> bytes:
    """Return the bytes of an output tensor; a missing element becomes empty, as the format has no null."""
    if array.dtype != object:
        return array.tobytes()
    return b"".join(part for raw in raw_elements(array) for part in (len(raw).to_bytes(4, "little"), raw))


def raw_elements(array: Array) -> list[bytes]:
    """Return the elements of a BYTES tensor as bytes, texts in UTF-8."""
    return [item.encode() if isinstance(item, str) else item or b"" for item in array.ravel().tolist()]


def bad_data(message: str) -> Refusal:
    """Return the refusal of bytes that do not match their description."""
    return Refusal(400, "bad_binary_data", message)


def _split_elements(name: str, count: int, raw: bytes | memoryview) -> list[bytes]:
    if count * 4 > len(raw):
        raise bad_data(
            f"the tensor {name!r}: {count} elements of BYTES need at least {count * 4} bytes, got {len(raw)}"
        )
    data = bytes(raw)
    elements, start = [], 0
    for index in range(count):
        begin = start + 4
        end = begin + int.from_bytes(data[start:begin], "little")
        if begin > len(data) or end > len(data):
            raise bad_data(f"the tensor {name!r}: element {index} of {count} ends after its {len(data)} bytes")
        elements.append(data[begin:end])
        start = end
    if start != len(data):
        raise bad_data(f"the tensor {name!r}: {len(data) - start} bytes follow its last element")
    return elements
