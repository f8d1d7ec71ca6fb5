"""Convert tables to columns, check them against a signature, and hash rows.

Columns have the array types that a request's would have. Knows nothing of files or batches, and needs no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raymlops.arrays import misfits, missing_array
from raymlops.data.tables.arrow import from_arrow, from_frame, from_lists, is_list
from raymlops.data.tables.values import from_array, kinds_of, objects
from raymlops.errors import RecipeError
from raymlops.images import image_arrays
from raymlops.recipe import RecipeBase, signature_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

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

    Files of images (``bytes``) are decoded. Arrays of numbers that were read ``as_stored`` stay so.

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
        array, message = as_column(column, columns[column.name])
        if message:
            raise RecipeError(
                f"{name}: column {column.name!r} of the signature is {_described(column)}, but in {place} it {message}",
                hint="A request must match the signature: change the signature, or the table in datasets().",
            )
        conformed[column.name] = array
    return conformed


def stackable(recipe: RecipeBase) -> set[str]:
    """Return the names of the inputs that are arrays of numbers of one shape."""
    inputs = signature_of(recipe).inputs
    return {each.name for each in inputs if each.type in {"float", "int"} and each.shape and None not in each.shape}


def as_requested(columns: Mapping[str, Array], recipe: RecipeBase) -> dict[str, Array]:
    """Return columns with what was read ``as_stored`` converted to the arrays of a request, which may be written to."""
    found = dict(columns)
    for column in signature_of(recipe).inputs:
        if (array := columns[column.name]).dtype.kind in "fi":
            array = array.astype(column.dtype, copy=False)
            found[column.name] = array if array.flags.writeable else array.copy()
    return found


def as_column(column: Column, array: Array) -> tuple[Array, str]:
    """Return a column of a table as a request would have it, and what its type or its gaps are where none could."""
    if column.type == "image":
        return _pixels(column, array)
    if None in column.shape:
        if array.ndim == 1 and array.dtype != object:
            return array, f"holds single values of {array.dtype}"
        ragged = np.empty(len(array), dtype=object)
        ragged[:] = list(array)
        return ragged, ""
    kinds = column.info.kinds + ("f" if column.type == "int" or column.nan_missing else "")
    kinds += "O" if column.type == "bool" else ""  # of which some are missing
    if array.dtype.kind not in kinds or (array.dtype == object and not _holds(array, column)):
        if not (column.info.nullable and _has_no_value(array)):
            return array, f"holds {kinds_of(array) if array.dtype == object else array.dtype}"
        array = missing_array(column, len(array))  # a type says nothing where a file has no value of it
    if array.shape[1:] != column.shape:
        return array, f"has values of shape {array.shape[1:]}"
    absent = [value is None for value in array] if array.dtype == object else _is_missing(array)
    missing = int(np.count_nonzero(absent))
    if missing and not column.nullable:
        return array, f"is missing {missing} times"
    bad = misfits(column, array) if column.type in {"int", "bool", "datetime"} else None
    if bad is not None and bad.any():
        return array, f"holds {array[bad][0]}, which is not {column.info.noun}"
    return (array if array.dtype.kind == column.dtype.kind else array.astype(column.dtype)), ""


def _is_missing(array: Array) -> Array:
    return np.isnat(array) if array.dtype.kind == "M" else np.isnan(array)


def _has_no_value(array: Array) -> bool:
    if array.ndim > 1 or not len(array):
        return False
    return all(value is None for value in array) if array.dtype == object else bool(_is_missing(array).all())


def _holds(array: Array, column: Column) -> bool:
    kind = {"string": str, "bool": bool}.get(column.type, bytes)
    return all(value is None or isinstance(value, kind) for value in array)


def _pixels(column: Column, array: Array) -> tuple[Array, str]:
    try:
        found = image_arrays(array, column.shape)
    except ValueError as error:
        return array, f"holds {error}"
    if None in column.shape:
        return objects(found), ""
    return (array if array.dtype == np.uint8 else np.stack(found)), ""


def _described(column: Column) -> str:
    shape = f" of shape {column.shape}" if column.shape else ""
    return f"{'a nullable' if column.nullable else 'a'} {column.type}{shape}"


def is_table(source: Any) -> bool:
    """Return whether a split is a table: a mapping of columns, Arrow or pandas."""
    return isinstance(source, Mapping) or _is_frame(source) or _is_arrow(source)


def table_columns(table: Any, *, as_stored: Collection[str] = ()) -> dict[str, Array]:
    """Return a table as columns: float64, int64, bool, datetime64, or objects: text and bytes, None where missing.

    An integer column with missing values is float64 with NaN, as in a signature, one of truth values objects. Images as
    uint8 arrays stay so. Times without a time zone are UTC, dates their midnight. A column of a type that a request
    cannot have, or of integers beyond int64, raises where it is read: training may not need it.

    Of an Arrow table, lists of numbers ``as_stored`` keep their type and their memory, which may be read-only:
    ``as_requested`` converts them, a few rows at a time.

    Raises:
        RecipeError: columns differ in length, or none has a type that a request can have.
    """
    if _is_frame(table) and not table.columns.is_unique:
        raise RecipeError("a DataFrame of the recipe has two columns of one name")
    read: Callable[[str, Any], Array]
    read = from_frame if _is_frame(table) else from_arrow if _is_arrow(table) else from_array
    columns, refused = {}, {}
    for name in table.column_names if _is_arrow(table) else table:
        stored = name in as_stored and is_list(table[name].type)
        try:
            columns[str(name)] = (partial(from_lists, as_stored=True) if stored else read)(str(name), table[name])
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
