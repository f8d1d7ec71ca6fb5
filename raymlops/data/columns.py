"""Convert tables to columns, check them against a signature, and hash rows.

Columns have the array types that a request's would have. Knows nothing of files or batches, and needs no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raymlops.column_types import INT64, TIME, read_time
from raymlops.errors import RecipeError
from raymlops.images import open_image, pixels
from raymlops.recipe import RecipeBase, signature_of

if TYPE_CHECKING:
    from raymlops.arrays import Column

Array = npt.NDArray[Any]


class Table(dict[str, Array]):
    """Columns by name. Those of types that no request can have are in ``refused``, and raise where one is read."""

    def __init__(self, columns: Mapping[str, Array], *, refused: Mapping[str, RecipeError]) -> None:
        super().__init__(columns)
        self.refused = dict(refused)

    def __missing__(self, name: str) -> Array:
        if name in self.refused:
            raise self.refused[name]
        raise KeyError(name)


def needed(recipe: RecipeBase) -> list[str]:
    """Return the names of the columns that training reads: the signature's inputs and the label."""
    return [column.name for column in signature_of(recipe).inputs] + ([recipe.label] if recipe.label else [])


def conform(columns: Mapping[str, Array], recipe: RecipeBase, *, place: str) -> Table:
    """Convert each input column to the array type of a request. ``place`` names the table in errors.

    Files of images (``bytes``) are decoded.

    Raises:
        RecipeError: an input or the label is missing, or an input does not match the signature.
    """
    name = type(recipe).__name__
    refused = columns.refused if isinstance(columns, Table) else {}
    for column_name in needed(recipe):
        if column_name in refused:
            raise refused[column_name]
    missing = [column for column in needed(recipe) if column not in columns]
    if missing:
        raise RecipeError(
            f"{name}.datasets(): {place} lacks {', '.join(map(repr, missing))}; it has {', '.join(columns) or 'none'}",
            hint="A table holds the signature's inputs and the label.",
        )
    conformed = Table(columns, refused=refused)
    for column in signature_of(recipe).inputs:
        array, message = _as_column(column, columns[column.name])
        if message:
            raise RecipeError(
                f"{name}: column {column.name!r} of the signature is {_described(column)}, but in {place} it {message}",
                hint="A request must match the signature: change the signature, or the table in datasets().",
            )
        conformed[column.name] = array
    return conformed


def _as_column(column: Column, array: Array) -> tuple[Array, str]:
    if column.type == "image":
        return _pixels(column, array)
    if None in column.shape:
        if array.ndim == 1 and array.dtype != object:
            return array, f"holds single values of {array.dtype}"
        ragged = np.empty(len(array), dtype=object)
        ragged[:] = list(array)
        return ragged, ""
    kinds = column.info.kinds + ("f" if column.type == "int" and column.nullable else "")
    if array.dtype.kind not in kinds or (array.dtype == object and not _holds(array, column)):
        return array, f"holds {_kinds_of(array) if array.dtype == object else array.dtype}"
    if array.shape[1:] != column.shape:
        return array, f"has values of shape {array.shape[1:]}"
    array = array.astype(np.float64 if column.type == "int" and column.nullable else column.info.dtype, copy=False)
    absent = [value is None for value in array] if array.dtype == object else _is_missing(array)
    missing = int(np.sum(absent))
    return array, f"is missing {missing} times" if missing and not column.nullable else ""


def _is_missing(array: Array) -> Array:
    return np.isnat(array) if array.dtype.kind == "M" else np.isnan(array)


def _holds(array: Array, column: Column) -> bool:
    kind = str if column.type == "string" else bytes
    return all(value is None or isinstance(value, kind) for value in array)


def _kinds_of(values: Iterable[Any]) -> str:
    return " and ".join(sorted({type(value).__name__ for value in values if value is not None}))


def _pixels(column: Column, array: Array) -> tuple[Array, str]:
    channels = column.shape[2] or 0
    found = []
    for row, value in enumerate(array):
        try:
            item = pixels(open_image(value, column.shape), channels) if isinstance(value, bytes) else np.asarray(value)
        except ValueError as error:
            return array, f"holds another in row {row}: {error}"
        fits = item.ndim == 3 and all(want in (None, got) for want, got in zip(column.shape, item.shape, strict=True))
        if item.dtype != np.uint8 or not fits:
            return array, f"holds in row {row} {item.dtype} of shape {item.shape}"
        found.append(item)
    if None in column.shape:
        return _objects(found), ""
    return (array if array.dtype == np.uint8 else np.stack(found)), ""


def _described(column: Column) -> str:
    shape = f" of shape {column.shape}" if column.shape else ""
    return f"{'a nullable' if column.nullable else 'a'} {column.type}{shape}"


def is_table(source: Any) -> bool:
    """Return whether a split is a table: a mapping of columns, Arrow, pandas, or the path of a Parquet file."""
    return isinstance(source, Mapping | str | Path) or _is_frame(source) or _is_arrow(source)


def table_columns(table: Any) -> dict[str, Array]:
    """Return a table as columns: float64, int64, bool, datetime64, or objects: text and bytes, None where missing.

    An integer column with missing values is float64 with NaN, as in a signature. Images as uint8 arrays stay so. Times
    without a time zone are UTC, dates their midnight. A column of a type that a request cannot have, or of integers
    beyond int64, raises where it is read: training may not need it.

    Raises:
        RecipeError: the file cannot be read, columns differ in length, or none has a type that a request can have.
    """
    if isinstance(table, str | Path):
        table = _read_parquet(str(table))
    if _is_frame(table) and not table.columns.is_unique:
        raise RecipeError("a DataFrame of the recipe has two columns of one name")
    read = _from_frame if _is_frame(table) else _from_arrow if _is_arrow(table) else _from_array
    columns, refused = {}, {}
    for name in table.column_names if _is_arrow(table) else table:
        try:
            columns[str(name)] = read(str(name), table[name])
        except RecipeError as error:
            refused[str(name)] = error
    if refused and not columns:
        raise next(iter(refused.values()))
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise RecipeError(f"a table of the recipe needs columns of one length, got {lengths or 'no column'}")
    return Table(columns, refused=refused)


def _is_frame(source: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(source, pandas.DataFrame)


def _is_arrow(source: Any) -> bool:
    arrow = sys.modules.get("pyarrow")
    return arrow is not None and isinstance(source, arrow.Table)


def _read_parquet(path: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise RecipeError(
            f"datasets() names the Parquet file {path!r}, which cannot be read: {error}",
            hint="A relative path is resolved in the working directory.",
        ) from error


def _from_frame(name: str, series: Any) -> Array:
    import pyarrow as pa

    if getattr(series.dtype, "tz", None) is not None:
        series = series.dt.tz_convert(None)  # pyarrow 25 would use what pandas 3.1 warns of
    try:
        return _from_arrow(name, pa.Table.from_pandas(series.to_frame(), preserve_index=False).column(0))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise RecipeError(f"column {name!r} of a DataFrame of the recipe mixes types: {error}") from error


def _from_arrow(name: str, column: Any) -> Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind):
        return _objects(column.to_pylist())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return _objects(column.to_pylist())
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return np.array(pc.cast(column, pa.timestamp("us"), safe=False).to_numpy(), dtype=TIME)
    if _is_list(kind):
        return _from_lists(name, column)
    if pa.types.is_boolean(kind) and not column.null_count:
        return np.asarray(column.to_numpy(), dtype=np.bool_)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        whole = pa.types.is_integer(kind) and not column.null_count
        array = np.empty(len(column), dtype=np.int64 if whole else np.float64)
        end = 0
        try:
            for chunk in column.chunks:
                start, end = end, end + len(chunk)
                array[start:end] = pc.cast(chunk, pa.int64() if whole else pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid as error:  # of integers with gaps, those beyond 2**53
            raise _range_error(name, str(kind)) from error
        return array
    raise _type_error(name, str(kind) + (" with missing values" if pa.types.is_boolean(kind) else ""))


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _from_lists(name: str, column: Any, *, depth: int = 1) -> Array:
    """Return lists stacked where they have one length, else as an array each, without Python objects for numbers.

    ``depth`` counts the lists within lists; images are three deep.
    """
    import pyarrow as pa

    item = column.type.value_type
    if not (_is_list(item) or pa.types.is_integer(item) or pa.types.is_floating(item) or pa.types.is_boolean(item)):
        return _stacked(name, column.to_pylist())
    if column.null_count:
        raise _type_error(name, "ragged or missing arrays")
    flat = pa.chunked_array([chunk.flatten() for chunk in column.chunks], type=item)
    if flat.null_count:
        raise _type_error(name, "ragged or missing arrays")
    if _is_list(item):
        values = _from_lists(name, flat, depth=depth + 1)
    elif depth == 3 and item == pa.uint8():
        values = np.concatenate([np.zeros(0, np.uint8), *(chunk.to_numpy() for chunk in flat.chunks)])
    else:
        values = _from_arrow(name, flat)
    lengths: Array = np.concatenate([np.zeros(0, dtype=np.int64), *(_lengths(chunk) for chunk in column.chunks)])
    if len(lengths) and (lengths == lengths[0]).all() and values.dtype != object:
        return values.reshape(len(lengths), int(lengths[0]), *values.shape[1:])
    parts = np.split(values, np.cumsum(lengths[:-1])) if len(lengths) else []
    return _objects(parts) if values.dtype != object else _stacked(name, [_one_array(name, part) for part in parts])


def _one_array(name: str, lists: Array) -> Array:
    """Return the lists of one row, which have the same length, as one array."""
    if len({item.shape for item in lists}) > 1:
        raise _type_error(name, "ragged or missing arrays")
    return np.stack(lists.tolist()) if len(lists) else np.zeros(0)


def _lengths(lists: Any) -> Array:
    import pyarrow as pa

    if pa.types.is_fixed_size_list(lists.type):
        return np.full(len(lists), lists.type.list_size, dtype=np.int64)
    offsets: Array = lists.offsets.to_numpy()
    return np.diff(offsets).astype(np.int64, copy=False)


def _from_array(name: str, values: Any) -> Array:
    array = values if isinstance(values, np.ndarray) else _as_array(values)
    if array.ndim == 0:
        raise RecipeError(f"column {name!r} of a table is the single value {values!r}, not an array of rows")
    if array.dtype.kind == "f":
        if _are_integers(values):
            raise _range_error(name, "int")
        return array.astype(np.float64, copy=False)
    if array.dtype == np.uint8 and array.ndim == 4:
        return array  # images: eight bytes a pixel would be seven too many
    if array.dtype.kind in "iu":
        if array.dtype == np.uint64 and array.size and array.max() > INT64[1]:
            raise _range_error(name, str(array.dtype))
        return array.astype(np.int64, copy=False)
    if array.dtype.kind == "b":
        return array
    if array.dtype.kind == "M":
        return array.astype(TIME)
    if array.dtype.kind in "UT":
        return array.astype(object)
    if array.dtype.kind == "O":
        return _from_objects(name, array)
    raise _type_error(name, str(array.dtype))


def _as_array(values: Any) -> Array:
    if hasattr(values, "detach"):
        return np.asarray(values.detach().cpu().numpy())
    if hasattr(values, "to_numpy"):
        return np.asarray(values.to_numpy())
    if isinstance(values, str) or not isinstance(values, Iterable):
        return np.asarray(values)
    items = list(values)
    text = any(isinstance(item, str | bytes) or item is None for item in items)
    return _objects(items) if text or _ragged(items) else np.asarray(items)


def _from_objects(name: str, array: Array) -> Array:
    items = [_none_if_missing(item) for item in array.tolist()]
    present = [item for item in items if item is not None]
    if any(all(isinstance(item, kind) for item in present) for kind in (str, bytes)):
        return _objects(items)
    if all(isinstance(item, datetime) for item in present):
        return np.array(["NaT" if item is None else read_time(item) for item in items], dtype=TIME)
    if all(isinstance(item, bool | int | float | np.number) for item in present):
        if len(present) == len(items):
            numbers = np.asarray(items)
            if numbers.dtype == object or (numbers.dtype.kind == "f" and _are_integers(items)):
                raise _range_error(name, "int")
            return _from_array(name, numbers)
        return np.array([np.nan if item is None else item for item in items], dtype=np.float64)
    if len(present) == len(items) and all(isinstance(item, list | np.ndarray) for item in items):
        return _stacked(name, items)
    raise _type_error(name, _kinds_of(present))


def _are_integers(values: Any) -> bool:
    """Return whether numpy made floats of integers, since no integer of 64 bits holds them all."""
    return isinstance(values, list | tuple) and len(values) > 0 and all(type(value) is int for value in values)


def _none_if_missing(item: Any) -> Any:
    if isinstance(item, float) and np.isnan(item):
        return None
    return None if type(item).__name__ in {"NAType", "NaTType"} else item


def _stacked(name: str, items: list[Any]) -> Array:
    arrays = [np.asarray(item) for item in items]
    if any(array.dtype == object for array in arrays):
        raise _type_error(name, "ragged or missing arrays")
    if len({array.shape for array in arrays}) == 1:
        return _from_array(name, np.stack(arrays))
    return _objects(arrays)


def _ragged(items: list[Any]) -> bool:
    return len({np.shape(item)[:1] for item in items if isinstance(item, list | tuple | np.ndarray)}) > 1


def _objects(items: Iterable[Any]) -> Array:
    listed = list(items)
    array = np.empty(len(listed), dtype=object)
    array[:] = listed
    return array


def _type_error(name: str, kind: str) -> RecipeError:
    return RecipeError(
        f"column {name!r} of a table has the type {kind}, which a request cannot have",
        hint="Turn it into numbers, text, bytes, times, true/false or arrays of numbers in datasets().",
    )


def _range_error(name: str, kind: str) -> RecipeError:
    return RecipeError(
        f"column {name!r} of a table has values of {kind} beyond int64, or beyond 2**53 beside missing ones",
        hint="Turn ids into text, or hash them into int64, in datasets().",
    )
