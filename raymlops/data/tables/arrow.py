"""Columns of Arrow tables and DataFrames as arrays: numbers never become Python objects.

pyarrow is imported where it is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from raymlops.column_types import TIME
from raymlops.data.tables.values import from_array, objects, range_error, stacked, type_error
from raymlops.errors import RecipeError

Array = npt.NDArray[Any]


def from_frame(name: str, series: Any) -> Array:
    """Return a column of a DataFrame as an array.

    Raises:
        RecipeError: no request can have what it holds.
    """
    import pyarrow as pa

    if getattr(series.dtype, "tz", None) is not None:
        series = series.dt.tz_convert(None)  # pyarrow 25 would use what pandas 3.1 warns of
    try:
        return from_arrow(name, pa.Table.from_pandas(series.to_frame(), preserve_index=False).column(0))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise RecipeError(f"column {name!r} of a DataFrame of the recipe mixes types: {error}") from error
    except (TypeError, NotImplementedError):  # sparse or complex numbers, intervals
        return from_array(name, series.to_numpy())


def from_arrow(name: str, column: Any) -> Array:
    """Return a ``pyarrow.ChunkedArray`` as an array.

    Raises:
        RecipeError: no request can have what it holds.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    kind = column.type
    texts = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())
    if kind in texts or pa.types.is_fixed_size_binary(kind) or pa.types.is_null(kind):
        return objects(column.to_pylist())
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return np.array(pc.cast(column, pa.timestamp("us"), safe=False).to_numpy(), dtype=TIME)
    if is_list(kind):
        return from_lists(name, column)
    if pa.types.is_boolean(kind):
        return objects(column.to_pylist()) if column.null_count else np.asarray(column.to_numpy(), dtype=np.bool_)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        whole = pa.types.is_integer(kind) and not column.null_count
        array = np.empty(len(column), dtype=np.int64 if whole else np.float64)
        end = 0
        try:
            for chunk in column.chunks:
                start, end = end, end + len(chunk)
                array[start:end] = pc.cast(chunk, pa.int64() if whole else pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid as error:  # of integers with gaps, those beyond 2**53
            raise range_error(name, str(kind)) from error
        return array
    raise type_error(name, str(kind))


def is_list(kind: Any) -> bool:
    """Return whether values of an Arrow type are lists."""
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def from_lists(name: str, column: Any, *, depth: int = 1, as_stored: bool = False) -> Array:
    """Return lists stacked where they have one length, else as an array each, without Python objects for numbers.

    Lists ``as_stored``, which have one length, keep their type and memory. ``depth`` counts the lists within lists;
    images are three deep.

    Raises:
        RecipeError: lists or values are missing, or no array holds them.
    """
    import pyarrow as pa

    item = column.type.value_type
    if pa.types.is_temporal(item):
        raise type_error(name, str(column.type))
    if not (is_list(item) or pa.types.is_integer(item) or pa.types.is_floating(item) or pa.types.is_boolean(item)):
        return stacked(name, column.to_pylist())
    if column.null_count:
        raise type_error(name, "ragged or missing arrays")
    flat = pa.chunked_array([chunk.flatten() for chunk in column.chunks], type=item)
    if flat.null_count:
        raise type_error(name, "ragged or missing arrays")
    if is_list(item):
        values = from_lists(name, flat, depth=depth + 1, as_stored=as_stored)
    elif depth == 3 and item == pa.uint8():
        values = np.concatenate([np.zeros(0, np.uint8), *(chunk.to_numpy() for chunk in flat.chunks)])
    elif as_stored and flat.num_chunks == 1 and (pa.types.is_signed_integer(item) or pa.types.is_floating(item)):
        values = flat.chunk(0).to_numpy()
    else:
        values = from_arrow(name, flat)
    lengths: Array = np.concatenate([np.zeros(0, dtype=np.int64), *(_lengths(chunk) for chunk in column.chunks)])
    if len(lengths) and (lengths == lengths[0]).all() and values.dtype != object:
        return values.reshape(len(lengths), int(lengths[0]), *values.shape[1:])
    parts = np.split(values, np.cumsum(lengths[:-1])) if len(lengths) else []
    return objects(parts) if values.dtype != object else stacked(name, [_one_array(name, part) for part in parts])


def _one_array(name: str, lists: Array) -> Array:
    """Return the lists of one row, which have the same length, as one array."""
    if len({item.shape for item in lists}) > 1:
        raise type_error(name, "ragged or missing arrays")
    return np.stack(lists.tolist()) if len(lists) else np.zeros(0)


def _lengths(lists: Any) -> Array:
    import pyarrow as pa

    if pa.types.is_fixed_size_list(lists.type):
        return np.full(len(lists), lists.type.list_size, dtype=np.int64)
    offsets: Array = lists.offsets.to_numpy()
    return np.diff(offsets).astype(np.int64, copy=False)
