"""Conversion between tensors of the Open Inference Protocol and columns of a signature.

Owns the protocol's data types, those that a column accepts and returns, and the rules of shapes. Each input tensor is
one column of the same name, of shape ``(rows, *shape)``; a scalar column may also have ``(rows, 1)``. Knows nothing of
JSON documents, bytes or gRPC messages.

=========== ============================================== ==============
column      accepts                                        returns
=========== ============================================== ==============
float       FP16, FP32, FP64, INT8 to 32, UINT8 to 32      FP64
int         INT8 to 64, UINT8 to 64                        INT64
bool        BOOL                                           BOOL
string      BYTES of UTF-8                                 BYTES
bytes       BYTES, in JSON data in base64                  BYTES
datetime    BYTES of ISO 8601 with its offset              BYTES
image       BYTES of a PNG or JPEG, in JSON data in base64 BYTES of a PNG
=========== ============================================== ==============

An image is one element, whatever its shape. A nullable int or bool column also accepts and returns FP64. Missing values
are NaN in floats and null in JSON data; a missing element of BYTES is returned as an empty one where there is no null.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.arrays import MAX_PROBLEMS, expected
from raymlops.column_types import as_integer, kind_of, write_bytes
from raymlops.errors import InvalidRowsError, RowProblem
from raymlops.serving.protocols.json_body import invalid, wrong
from raymlops.serving.protocols.native import too_many_rows
from raymlops.serving.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from raymlops.arrays import Column, Columns
    from raymlops.signature import Signature

    Array = npt.NDArray[Any]

NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{
        f"{sign}INT{bits}": np.dtype(f"<{kind}{bits // 8}")
        for sign, kind in (("", "i"), ("U", "u"))
        for bits in (8, 16, 32, 64)
    },
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
"""Types with a fixed size, little-endian as in a request."""

_INTS = tuple(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64))
_TAKES: dict[str, tuple[str, ...]] = {
    "float": ("FP16", "FP32", "FP64", *(name for name in _INTS if not name.endswith("64"))),
    "int": _INTS,
}
"""Where a column accepts others than its own."""
_MAX_ELEMENTS = 2**31


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a request: ``values`` are flat, an array of its type or JSON values."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Array | list[Any]


def datatype_of(column: Column) -> str:
    """Return the datatype of a column in metadata and answers."""
    return "FP64" if column.nan_missing else column.info.tensor


def accepted_types(column: Column) -> tuple[str, ...]:
    """Return the datatypes that a column accepts."""
    return _TAKES.get(column.type, (column.info.tensor,)) + (("FP64",) if column.nan_missing else ())


def described(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Return the metadata of tensors; -1 is a dimension of any length."""
    return [
        {
            "name": column.name,
            "datatype": datatype_of(column),
            "shape": [-1, *(-1 if size is None else size for size in column.sent_shape)],
        }
        for column in columns
    ]


def element_count(name: str, datatype: str, shape: Sequence[int], *, signature: Signature, max_rows: int) -> int:
    """Check a tensor's name, type and shape; return its number of elements.

    Raises:
        Refusal: 413, too many rows; 422, the signature has no such column, or one of another type or shape.
    """
    column = next((column for column in signature.inputs if column.name == name), None)
    if column is None:
        names = ", ".join(sorted(column.name for column in signature.inputs))
        raise wrong(name[:80], f"unknown tensor; known: {names}")
    takes = accepted_types(column)
    if datatype not in takes:
        message = f"expected the datatype {' or '.join(takes)}, got {datatype[:40]!r}"
        raise wrong(name, message)
    sent = column.sent_shape
    fits = len(shape) == 1 + len(sent) and all(
        want is None or want == got for want, got in zip(sent, shape[1:], strict=True)
    )
    if not (fits or (not sent and list(shape[1:]) == [1])) or min(shape) < 0:
        want = ", ".join(["rows", *("any" if size is None else str(size) for size in sent)])
        got = ", ".join(str(size) for size in shape[:8]) + (", ..." if len(shape) > 8 else "")
        raise wrong(name, f"expected the shape [{want}], got [{got[:80]}]")
    if shape[0] > max_rows:
        raise too_many_rows(shape[0], max_rows)
    if math.prod(max(size, 1) for size in shape) > _MAX_ELEMENTS:
        raise wrong(name, "the shape has more elements than any request can hold")
    return math.prod(shape)


def columns_of(tensors: Sequence[Tensor], signature: Signature) -> tuple[dict[str, Array], int]:
    """Return the columns of tensors that ``element_count`` has checked, and their number of rows.

    Raises:
        Refusal: 422, a tensor is repeated or missing, or its values do not fit its type or its column.
    """
    arrays: dict[str, Array] = {}
    columns = {column.name: column for column in signature.inputs}
    problems: list[RowProblem] = []
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise wrong(tensor.name, "the tensor is given twice")
        seen.add(tensor.name)
        column = columns[tensor.name]
        values = tensor.values
        try:
            flat = _from_json(column, tensor, values) if isinstance(values, list) else values
            if flat.dtype == object and column.info.raw is None:
                flat = _texts(column.name, flat)
        except Refusal as refusal:
            problems += refusal.problems
            continue
        arrays[tensor.name] = flat.reshape(tensor.shape if column.sent_shape else tensor.shape[:1])
    if problems:
        raise invalid(sorted(problems, key=lambda problem: problem.row or 0)[:MAX_PROBLEMS])
    try:
        return signature.parse_arrays(arrays), len(next(iter(arrays.values()), ()))
    except InvalidRowsError as error:
        raise invalid(error.problems) from error


def elements(values: Sequence[Any]) -> Array:
    """Return the elements of a BYTES tensor as an array: bytes, or texts and None from JSON."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _texts(name: str, raw: Array) -> Array:
    """Return the elements of a BYTES tensor decoded.

    Raises:
        Refusal: 422, an element is not UTF-8.
    """
    texts = raw.copy()
    for index, item in enumerate(raw.tolist()):
        try:
            texts[index] = item.decode("utf-8") if isinstance(item, bytes) else item
        except UnicodeDecodeError as error:
            message = f"expected UTF-8, got an element whose byte {error.start} cannot be decoded"
            raise invalid([RowProblem(index, name, message)]) from error
    return texts


def requested(names: Sequence[str], signature: Signature) -> list[Column]:
    """Return the requested output columns by name; all of them without a name.

    Raises:
        Refusal: 422, the signature has no such output, or one is requested twice.
    """
    if not names:
        return list(signature.outputs)
    known = {column.name: column for column in signature.outputs}
    unknown = itertools.islice((name for name in names if name not in known), MAX_PROBLEMS)
    problems = [RowProblem(None, name[:80], f"unknown output; known: {', '.join(known)}") for name in unknown]
    if not problems and len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        problems.append(RowProblem(None, twice, "the output is requested twice"))
    if problems:
        raise invalid(problems)
    return [known[name] for name in names]


def output_array(column: Column, outputs: Columns) -> Array:
    """Return an output column as one array of its tensor's type: BYTES as texts, or as bytes.

    Raises:
        Refusal: 422, the rows differ in a free dimension.
    """
    array = outputs[column.name]
    if None in column.sent_shape:
        shapes = {piece.shape for piece in array}
        if len(shapes) > 1:
            message = f"the output {column.name!r} differs in shape from row to row, which no tensor can hold"
            raise Refusal(422, "ragged_output", f"{message}; send one row at a time, or use the native protocol")
        array = np.stack(list(array))
    if column.info.raw is not None:
        return elements(column.info.raw(array))
    if column.info.is_text:
        return array if column.info.write is None else elements(column.info.write(array))
    return np.ascontiguousarray(array, dtype=NUMPY_TYPES[datatype_of(column)])


def json_data(column: Column, array: Array) -> list[Any]:
    """Return the flat JSON data of an ``output_array``: bytes in base64."""
    values: list[Any] = array.reshape(-1).tolist()
    return values if column.info.raw is None else list(write_bytes(values))


def _from_json(column: Column, tensor: Tensor, values: list[Any]) -> Array:
    """Return JSON values as an array of their tensor's type, with NaN or None for null."""
    kinds = set(map(type, values))
    if float in kinds and tensor.datatype in _INTS:
        values = list(map(as_integer, values))
        kinds = set(map(type, values))
    if column.nullable:
        kinds.discard(type(None))
    datatype = tensor.datatype
    allowed: set[type] = {bool} if datatype == "BOOL" else {str} if datatype == "BYTES" else {int}
    if datatype.startswith("FP"):
        allowed = {int, float}
    if kinds <= allowed:
        try:
            return _converted(column, datatype, values)
        except OverflowError:  # an integer that its type, or any float, cannot hold
            pass
    problems = (
        RowProblem(index // (len(values) // tensor.shape[0]), tensor.name, message)
        for index, value in enumerate(values)
        if (message := _misfit(column, datatype, value, allowed)) is not None
    )
    raise invalid(list(itertools.islice(problems, MAX_PROBLEMS)))


def _converted(column: Column, datatype: str, values: list[Any]) -> Array:
    if datatype == "BYTES":
        return elements(values)
    if datatype.startswith("FP"):
        with np.errstate(over="ignore"):  # an overflow of FP32 is infinite, and refused as such
            return np.array(values, dtype=NUMPY_TYPES[datatype])
    if column.nullable and None in values:
        given = np.array([value for value in values if value is not None], dtype=NUMPY_TYPES[datatype])
        array = np.full(len(values), np.nan)
        array[[index for index, value in enumerate(values) if value is not None]] = given
        return array
    return np.array(values, dtype=NUMPY_TYPES[datatype])


def _misfit(column: Column, datatype: str, value: Any, allowed: set[type]) -> str | None:
    if value is None:
        return None if column.nullable else f"must not be null; expected {expected(column)}"
    if type(value) in allowed:
        if datatype in _INTS:
            info = np.iinfo(NUMPY_TYPES[datatype])
            fits = info.min <= value <= info.max
        else:
            fits = type(value) is not int or abs(value) < 2**1023
        if fits:
            return None
    return f"expected {datatype}, got {kind_of(value)}"
