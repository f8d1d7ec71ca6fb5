"""Arrays, lists and tensors as the arrays of a table's columns.

Owns their types, and the errors of those that no request can have.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from raymlops.column_types import INT64, TIME, read_time
from raymlops.errors import RecipeError
from raymlops.pytree import to_numpy

Array = npt.NDArray[Any]

_WHOLE = 2**53
"""Up to it, float64 holds every integer."""


def from_array(name: str, values: Any) -> Array:
    """Return an array, a list, a series or a tensor as a column.

    Raises:
        RecipeError: no request can have what it holds.
    """
    array = values if isinstance(values, np.ndarray) else _as_array(name, values)
    if isinstance(array, np.ma.MaskedArray):
        array = _filled(name, array)
    if array.ndim == 0:
        raise RecipeError(f"column {name!r} of a table is the single value {values!r}, not an array of rows")
    if array.dtype.kind == "f":
        if _are_integers(values):
            raise range_error(name, "int")
        return array.astype(np.float64, copy=False)
    if array.dtype == np.uint8 and array.ndim == 4:
        return array  # images: eight bytes a pixel would be seven too many
    if array.dtype.kind in "iu":
        if array.dtype == np.uint64 and array.size and array.max() > INT64[1]:
            raise range_error(name, str(array.dtype))
        return array.astype(np.int64, copy=False)
    if array.dtype.kind == "b":
        return array
    if array.dtype.kind == "M":
        return array.astype(TIME)
    if array.dtype.kind in "UT":
        return array.astype(object)
    if array.dtype.kind == "O":
        return _from_objects(name, array)
    raise type_error(name, str(array.dtype))


def _filled(name: str, array: Any) -> Array:
    """Return a masked array as another would have what is missing."""
    found: Array = array.data
    if not np.ma.is_masked(array):
        return found
    if array.dtype.kind in "fM":
        found = array.filled(np.nan if array.dtype.kind == "f" else np.datetime64("NaT"))
    elif array.ndim == 1:
        found = found.astype(object)
        found[array.mask] = None
    else:
        raise type_error(name, f"masked arrays of {array.dtype}")
    return found


def _as_array(name: str, values: Any) -> Array:
    if hasattr(values, "detach"):
        try:
            return to_numpy(values)
        except (TypeError, RuntimeError) as error:
            raise type_error(name, f"{values.dtype}, {values.layout}") from error
    if hasattr(values, "to_numpy"):
        return np.asarray(values.to_numpy())
    if isinstance(values, str) or not isinstance(values, Iterable):
        return np.asarray(values)
    items = list(values)
    text = any(isinstance(item, str | bytes) or item is None for item in items)
    if text or _ragged(items):
        return objects(items)
    array = np.asarray(items)
    gaps = array.dtype.kind == "f" and array.ndim == 1 and bool(np.isnan(array).any())
    return objects(items) if gaps and any(isinstance(item, int | np.integer) for item in items) else array


def _from_objects(name: str, array: Array) -> Array:
    items = [_none_if_missing(item) for item in array.tolist()]
    present = [item for item in items if item is not None]
    if any(all(isinstance(item, kind) for item in present) for kind in (str, bytes)):
        return objects(items)
    if all(isinstance(item, datetime) for item in present):
        return np.array(["NaT" if item is None else read_time(item) for item in items], dtype=TIME)
    if all(isinstance(item, bool | int | float | np.number) for item in present):
        if len(present) == len(items):
            numbers = np.asarray(items)
            if numbers.dtype == object or (numbers.dtype.kind == "f" and _are_integers(items)):
                raise range_error(name, "int")
            return from_array(name, numbers)
        if any(isinstance(item, int | np.integer) and abs(int(item)) > _WHOLE for item in present):
            raise range_error(name, "int")
        return np.array([np.nan if item is None else item for item in items], dtype=np.float64)
    if len(present) == len(items) and all(isinstance(item, list | np.ndarray) for item in items):
        return stacked(name, items)
    raise type_error(name, kinds_of(present))


def _are_integers(values: Any) -> bool:
    """Return whether numpy made floats of integers, since no integer of 64 bits holds them all."""
    if not isinstance(values, list | tuple) or len(values) == 0:
        return False
    return all(type(value) is int or isinstance(value, np.integer) for value in values)


def _none_if_missing(item: Any) -> Any:
    if isinstance(item, float) and np.isnan(item):
        return None
    return None if type(item).__name__ in {"NAType", "NaTType"} else item


def stacked(name: str, items: list[Any]) -> Array:
    """Return an array of lists or arrays: objects where their shapes differ.

    Raises:
        RecipeError: values are missing, or lists in one of them have several lengths.
    """
    arrays = [np.asarray(item) for item in items]
    if any(array.dtype == object for array in arrays):
        raise type_error(name, "ragged or missing arrays")
    if len({array.shape for array in arrays}) == 1:
        return from_array(name, np.stack(arrays))
    return objects(arrays)


def _ragged(items: list[Any]) -> bool:
    return len({np.shape(item)[:1] for item in items if isinstance(item, list | tuple | np.ndarray)}) > 1


def objects(items: Iterable[Any]) -> Array:
    """Return an array of objects."""
    listed = list(items)
    array = np.empty(len(listed), dtype=object)
    array[:] = listed
    return array


def type_error(name: str, kind: str) -> RecipeError:
    """Return the error of a column of another type."""
    return RecipeError(
        f"column {name!r} of a table has the type {kind}, which a request cannot have",
        hint="Turn it into numbers, text, bytes, times, true/false or arrays of numbers in datasets().",
    )


def range_error(name: str, kind: str) -> RecipeError:
    """Return the error of integers that neither int64 nor, beside missing ones, float64 holds."""
    return RecipeError(
        f"column {name!r} of a table has values of {kind} beyond int64, or beyond 2**53 beside missing ones",
        hint="Turn ids into text, or hash them into int64, in datasets().",
    )


def kinds_of(values: Iterable[Any]) -> str:
    """Return the names of the types of values that are there."""
    return " and ".join(sorted({type(value).__name__ for value in values if value is not None}))
