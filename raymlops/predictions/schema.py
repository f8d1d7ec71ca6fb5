"""Convert answered requests to Arrow tables: one row for each input row, typed by the model's signature.

Owns the columns of the log. Pure: knows nothing of files, threads or time. Requests are converted in bulk, column by
column, since this runs in the process that answers.

``features`` and ``output`` are structs of the signature's inputs and outputs: double, int64, bool, string, timestamp,
and lists of lists. Of bytes and images, which may be large and show persons, only the text ``sha256:HEX LENGTH`` is
kept, of an image that of its decoded pixels. Missing values are null. Redacted fields are absent.
"""

from __future__ import annotations

from collections import defaultdict
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from raymlops.predictions.paths import HOUR_S
from raymlops.predictions.served import RequestRecord

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy.typing as npt

    from raymlops.arrays import Column, Columns
    from raymlops.signature import Signature

FIELDS: dict[str, Any] = {
    "request_id": pa.string(),
    "row": pa.int32(),
    "ts": pa.timestamp("us", tz="UTC"),
    "model": pa.string(),
    "model_version": pa.int64(),
    "route": pa.string(),
    "protocol": pa.string(),
    "status": pa.int16(),
    "seconds": pa.float64(),
    "model_seconds": pa.float64(),
    "key_id": pa.string(),
    "caller": pa.string(),
    "fallback_from": pa.int64(),
    "difference": pa.float64(),
    "weight": pa.float64(),
}
"""Columns that every row has, whatever the model; ``features`` and ``output`` follow them."""
FEATURES, OUTPUT = "features", "output"
_COPIED = ("route", "status", "seconds", "model_seconds", "fallback_from", "difference", "weight")


class Partition(NamedTuple):
    """One version in one hour, counted since 1970 in UTC."""

    version: int
    hour: int


def to_tables(
    batch: Sequence[RequestRecord], signature: Signature, *, name: str, redact: Collection[str] = ()
) -> dict[Partition, pa.Table]:
    """Return the rows of all requests that were answered, by version and hour of arrival.

    Raises:
        Exception: one of them does not fit the signature.
    """
    groups: dict[Partition, list[RequestRecord]] = defaultdict(list)
    for served in batch:
        if is_answered(served):
            groups[Partition(served.version, int(served.ts // HOUR_S))].append(served)
    return {where: _table(group, signature, name=name, redact=redact) for where, group in groups.items()}


def is_answered(served: RequestRecord) -> bool:
    """Return whether a request has rows for the log: refused or failed ones have none."""
    return served.columns is not None and served.outputs is not None and served.rows > 0


def schema_of(signature: Signature, *, redact: Collection[str] = ()) -> pa.Schema:
    """Return the schema of a version's tables."""
    sides = {FEATURES: signature.inputs, OUTPUT: signature.outputs}
    structs = {name: pa.struct(_fields(columns, redact)) for name, columns in sides.items()}
    # Parquet has no struct without a field.
    return pa.schema([*FIELDS.items(), *((name, struct) for name, struct in structs.items() if struct.num_fields)])


def _table(group: Sequence[RequestRecord], signature: Signature, *, name: str, redact: Collection[str]) -> pa.Table:
    schema = schema_of(signature, redact=redact)
    counts = np.fromiter((served.rows for served in group), np.int64, len(group))
    of_request = np.repeat(np.arange(len(group)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    once = _once(group, name=name)
    columns = {key: array if len(group) == len(of_request) else array.take(of_request) for key, array in once.items()}
    columns["row"] = pa.array((np.arange(len(of_request)) - first).astype(np.int32))
    asked: list[Columns] = [served.columns for served in group if served.columns is not None]
    answered: list[Columns] = [served.outputs for served in group if served.outputs is not None]
    for side, known, parts in ((FEATURES, signature.inputs, asked), (OUTPUT, signature.outputs, answered)):
        if side in schema.names:
            columns[side] = _struct(known, parts, redact=redact, rows=len(of_request))
    return pa.table([columns[key] for key in schema.names], schema=schema)


def _once(group: Sequence[RequestRecord], *, name: str) -> dict[str, pa.Array]:
    """Return the columns with one value a request."""
    of = dict(zip(RequestRecord._fields, zip(*group, strict=True), strict=True))
    return {
        "request_id": _texts(of["request_id"]),
        "ts": pa.array(np.rint(np.array(of["ts"]) * 1e6).astype(np.int64)).cast(FIELDS["ts"]),
        "model": pa.repeat(pa.scalar(name), len(group)),
        "model_version": pa.array(of["version"], pa.int64()),
        "protocol": _texts(of["protocol"]),
        "key_id": _texts(of["key_id"]),
        "caller": _texts(of["caller"]),
        **{field: pa.array(of[field], FIELDS[field]) for field in _COPIED},
    }


def _struct(known: Sequence[Column], parts: Sequence[Columns], *, redact: Collection[str], rows: int) -> pa.StructArray:
    kept = [column for column in known if column.name not in redact]
    arrays = [
        column_array(column, parts, rows=rows) if column.info.raw is None else _digests(column, parts, rows=rows)
        for column in kept
    ]
    return pa.StructArray.from_arrays(arrays, fields=_fields(kept, ()))


def _fields(columns: Sequence[Column], redact: Collection[str]) -> list[pa.Field]:
    kept = [column for column in columns if column.name not in redact]
    return [pa.field(column.name, _type(column) if column.info.raw is None else pa.string()) for column in kept]


def _type(column: Column) -> pa.DataType:
    function, *arguments = column.info.arrow
    kind = getattr(pa, function)(*arguments)
    for _ in column.sent_shape:
        kind = pa.list_(kind)
    return kind


def _digests(column: Column, parts: Sequence[Columns], *, rows: int) -> pa.Array:
    values = [value for part in parts for value in part.get(column.name, ())]
    if not values:
        return pa.nulls(rows, pa.string())
    return pa.array(
        [
            None if value is None else _digest(value if isinstance(value, bytes) else value.tobytes())
            for value in values
        ],
        pa.string(),
    )


def _digest(data: bytes) -> str:
    return f"sha256:{sha256(data).hexdigest()} {len(data)}"


def column_array(column: Column, parts: Sequence[Columns], *, rows: int) -> pa.Array:
    """Return the values of a column in all parts as one array; missing values are null, tensors are nested lists.

    An image is the bytes of a PNG.
    """
    if not any(column.name in part for part in parts):
        return pa.nulls(rows, _type(column))  # another version need not answer every output of ours
    values = [part[column.name] for part in parts]
    if column.info.raw is not None:
        return pa.array([raw for part in values for raw in column.info.raw(part)], _type(column))
    if None in column.shape:
        items = [np.asarray(item, column.info.dtype) for part in values for item in part]
        depth = len(column.shape)
        # An empty tensor written as [] has lost its inner dimensions.
        shapes = np.array([(*item.shape, *[0] * (depth - item.ndim)) for item in items], np.int64)
        return _nested(np.concatenate([item.ravel() for item in items]), shapes)
    joined = values[0] if len(values) == 1 else np.concatenate(values)
    if column.type == "string":
        return _texts(joined.tolist())
    if column.type == "datetime":
        return pa.array(joined).cast(_type(column))
    if column.nullable:
        array = pa.array(joined.astype(np.float64, copy=False), from_pandas=True)
        return array.cast(_type(column), safe=False)
    joined = joined.astype(column.info.dtype, copy=False)
    return _nested(joined.ravel(), np.broadcast_to(np.array(column.shape, np.int64), (rows, len(column.shape))))


def _nested(flat: npt.NDArray[Any], shapes: npt.NDArray[np.int64]) -> pa.Array:
    """Return tensors as lists of lists from all their elements in order and the shape of each, (rows, dimensions)."""
    array = pa.array(flat)
    for depth in reversed(range(shapes.shape[1])):
        lengths = np.repeat(shapes[:, depth], shapes[:, :depth].prod(axis=1))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        array = pa.ListArray.from_arrays(offsets, array)
    return array


def _texts(values: Sequence[str | None]) -> pa.Array:
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can write and UTF-8 cannot
        return pa.array([v if v is None else v.encode("utf-8", "replace").decode() for v in values], pa.string())
