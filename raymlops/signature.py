"""The inputs and outputs of a model: named, typed columns, validated strictly and converted to arrays.

Owns the types of columns and the conversion between rows (lists of dicts) and columns (name to array); ``arrays``
validates the values of one column. Knows nothing of models, servers or files. Imports numpy alone, so that a client can
use it.

Arrays, for n rows:

============ ====================== =====================================
type          array                  missing (only where ``nullable``)
============ ====================== =====================================
``float``     float64 (n, *shape)    NaN
``int``       int64 (n, *shape)      a nullable int column is float64, NaN
``bool``      bool (n, *shape)       a nullable bool column is float64, NaN
``string``    object (n,)            None
``bytes``     object (n,) of bytes   None
``datetime``  datetime64[us], UTC    NaT
``image``     uint8 (n, *shape)      not allowed
============ ====================== =====================================

A column whose shape has a None (variable length) is an object array of n arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from raymlops.arrays import (
    MAX_PROBLEMS,
    Column,
    Columns,
    careful_array,
    expected,
    known_texts,
    missing_array,
    quick_array,
    whole_array,
)
from raymlops.column_types import TIME, kind_of, write_time
from raymlops.errors import InvalidRowsError, RowProblem

_JSON_KINDS = {float, int, bool, str, type(None)}
_Plan = tuple[tuple[str, ...], Callable[[Any], Any], list[tuple[Column, frozenset[str | None] | None]]]


class _Reading:
    """A cache for reading rows, apart from the fields, so that it is neither compared, stored nor sent."""

    __slots__ = ("_plan",)
    _plan: _Plan


@dataclass(frozen=True, slots=True)
class Signature(_Reading):
    """The input and output columns of a model."""

    inputs: tuple[Column, ...]
    outputs: tuple[Column, ...]

    def __post_init__(self) -> None:
        for side in (self.inputs, self.outputs):
            names = [column.name for column in side]
            if not names or len(set(names)) != len(names):
                msg = f"a signature needs at least one column a side, each with its own name; got {names}"
                raise ValueError(msg)

    @property
    def has_images(self) -> bool:
        """Return whether requests or answers hold images, which take milliseconds to decode and encode."""
        return any(column.type == "image" for column in (*self.inputs, *self.outputs))

    @property
    def values_per_row(self) -> int | None:
        """Return how many values a row of inputs has in JSON at most; None without a bound."""
        if self.endless:
            return None
        return sum(
            math.prod((column.max_length or 0) if size is None else size for size in column.sent_shape)
            for column in self.inputs
        )

    @property
    def endless(self) -> tuple[str, ...]:
        """Return the inputs that have a free dimension in JSON, and no ``max_length`` that bounds it."""
        return tuple(one.name for one in self.inputs if one.max_length is None and None in one.sent_shape)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data that ``from_dict`` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Signature:
        """Rebuild a signature; keys that a newer version wrote are ignored."""
        return cls(*(tuple(_column(item) for item in data[side]) for side in ("inputs", "outputs")))

    def parse_rows(self, rows: Any) -> dict[str, npt.NDArray[Any]]:
        """Turn JSON rows into input columns, strictly.

        ``rows`` is a non-empty list of objects. A value must have its column's JSON type: ``true`` and
        ``"1"`` are not numbers. JSON has one type of numbers: 1 is a float and 1.0 an int, 1.5 is not. NaN and infinity
        are rejected.

        Raises:
            InvalidRowsError: naming row and field of the first problems found (at most 20).
        """
        unknown: list[RowProblem] = []
        return self._arrays(self._values_by_column(rows, unknown), unknown)

    def parse_columns(self, data: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """Turn named sequences or arrays (a DataFrame's columns, Arrow's ``to_pydict``) into input columns.

        A nullable column may be left out. Bytes and images may be ``bytes``, times ``datetime`` or ``datetime64``,
        which are UTC where they have no offset.

        Raises:
            InvalidRowsError: as ``parse_rows``; NaN counts as missing in a nullable column.
        """
        lists = {str(name): _listed(values) for name, values in data.items()}
        rows = self._count_rows({name: len(values) for name, values in lists.items()})
        table = [lists.get(column.name, [column.absent] * rows) for column in self.inputs]
        return self._arrays(table, [], as_json=_as_json)

    def parse_arrays(self, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Turn whole arrays, one a column, into input columns, which are writable.

        A column's array has the shape ``(rows, *shape)``; a free dimension has any length, the same for all rows. Float
        columns take floats and integers, int columns integers, nullable int columns also floats that are whole
        numbers, nullable bool columns 0 and 1. NaN is missing, as None is in an object array of strings. A nullable
        column may be left out.

        Raises:
            InvalidRowsError: as ``parse_rows``.
        """
        rows = self._count_rows({name: len(array) if array.ndim else 0 for name, array in arrays.items()})
        problems: list[RowProblem] = []
        columns = {}
        for column in self.inputs:
            array = arrays.get(column.name)
            if array is not None:
                columns[column.name] = whole_array(column, array, problems)
            elif column.nullable:
                columns[column.name] = missing_array(column, rows)
            else:
                problems.append(RowProblem(None, column.name, f"is missing; expected {expected(column)}"))
        _raise_any(problems)
        return columns

    def rows(self, columns: Columns) -> list[dict[str, Any]]:
        """Turn input or output columns into JSON rows, missing values as null.

        A nullable integer or bool column, whose array is float64, gives integers, or true and false.
        """
        both = (*self.inputs, *self.outputs)
        lists = {
            name: _json_values([column for column in both if column.name == name], np.asarray(array))
            for name, array in columns.items()
        }
        return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]

    def _values_by_column(self, rows: Any, unknown: list[RowProblem]) -> Iterable[Sequence[Any]]:
        """Return the values of each input column; fields that no column has are added to ``unknown``.

        A row without a nullable field has None there.
        """
        if not isinstance(rows, list) or not rows:
            got = "an empty list" if isinstance(rows, list) else kind_of(rows)
            raise InvalidRowsError([RowProblem(None, None, f"expected a non-empty list of rows, got {got}")])
        names, get, _ = self._planned()
        if set(map(type, rows)) == {dict} and sum(map(len, rows)) == len(rows) * len(names):
            try:
                return zip(*map(get, rows), strict=True) if len(names) > 1 else [list(map(get, rows))]
            except KeyError:  # as many fields, but others
                pass
        known = set(names)
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                unknown.append(RowProblem(index, None, f"expected an object of named fields, got {kind_of(row)}"))
            elif not row.keys() <= known:
                others = sorted(row.keys() - known, key=str)[:MAX_PROBLEMS]
                unknown += [RowProblem(index, str(name)[:80], self._unknown_field()) for name in others]
            if len(unknown) >= MAX_PROBLEMS:
                break
        if not all(isinstance(row, dict) for row in rows):
            _raise_any(unknown)
        absent = {column.name: column.absent for column in self.inputs}
        return [[row.get(name, default) for row in rows] for name, default in absent.items()]

    def _arrays(
        self,
        table: Iterable[Sequence[Any]],
        unknown: Sequence[RowProblem],
        *,
        as_json: Callable[[Column, Sequence[Any]], Sequence[Any]] | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays of the input columns' values; ``as_json`` converts those that are not valid as they are.

        Raises:
            InvalidRowsError: values are wrong, or fields ``unknown``: all in the order of their rows.
        """
        problems: list[RowProblem] = []
        columns = {}
        for (column, known), given in zip(self._planned()[2], table, strict=True):
            values, array = given, quick_array(column, given, known)
            if array is None and as_json is not None:
                values = as_json(column, given)
                array = quick_array(column, values, known)
            if array is None:  # each column by itself, so that the first wrong rows are complete
                found: list[RowProblem] = []
                array = careful_array(column, values, found)
                problems += found
            columns[column.name] = array
        if unknown or problems:
            _raise_any(sorted([*unknown, *problems], key=lambda problem: problem.row or 0))
        return columns

    def _count_rows(self, lengths: Mapping[str, int]) -> int:
        """Return the number of rows that columns of these lengths hold.

        Raises:
            InvalidRowsError: a name is unknown, the lengths differ, or there are no rows.
        """
        known = {column.name for column in self.inputs}
        problems = [RowProblem(None, name[:80], self._unknown_field()) for name in lengths if name not in known]
        if not problems and len(set(lengths.values())) > 1:
            shown = ", ".join(f"{name[:80]} {length}" for name, length in list(lengths.items())[:MAX_PROBLEMS])
            problems = [RowProblem(None, None, f"columns differ in length: {shown}")]
        if not problems and not any(lengths.values()):
            problems = [RowProblem(None, None, "expected at least one row, got none")]
        _raise_any(problems)
        return max(lengths.values())

    def _unknown_field(self) -> str:
        return f"unknown field; known: {', '.join(sorted(column.name for column in self.inputs))}"

    def _planned(self) -> _Plan:
        try:
            return self._plan
        except AttributeError:
            names = tuple(column.name for column in self.inputs)
            plan: _Plan = (names, itemgetter(*names), [(column, known_texts(column)) for column in self.inputs])
            object.__setattr__(self, "_plan", plan)
            return plan


def _json_values(named: Sequence[Column], array: npt.NDArray[Any]) -> list[Any]:
    """Return the JSON values of an array; an input and an output may have one name, and different types."""
    for info in (column.info for column in named):
        if info.write is not None and array.dtype.kind in f"{info.kinds}O":
            return info.write(array)
    if array.dtype.kind == "M":  # of no column, such as a label
        return write_time(array)
    values = [_plain(value) for value in array.tolist()]
    types = {column.type for column in named}
    if types == {"bool"}:
        return [bool(value) if isinstance(value, float) else value for value in values]
    if "int" not in types:
        return values
    return [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]


def _listed(values: Any) -> list[Any]:
    if isinstance(values, np.ndarray) and values.dtype.kind == "M":
        values = values.astype(TIME)  # nanoseconds would become integers
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _raise_any(problems: Sequence[RowProblem]) -> None:
    if problems:
        raise InvalidRowsError(problems[:MAX_PROBLEMS])


def _as_json(column: Column, values: Sequence[Any]) -> Sequence[Any]:
    """Return values as JSON has them, where an array or a DataFrame holds NaN for null."""
    if not set(map(type, values)) <= _JSON_KINDS:
        values = [_plain(value, keep_nan=not column.nullable) for value in values]
    if column.nullable:
        values = [None if type(value) is float and math.isnan(value) else value for value in values]
    return values


def _column(item: Mapping[str, Any]) -> Column:
    known = {key: item[key] for key in Column.__dataclass_fields__ if key in item}
    known["shape"] = tuple(known.get("shape") or ())
    if known.get("categories") is not None:
        known["categories"] = tuple(known["categories"])
    return Column(**known)


def _plain(value: Any, *, keep_nan: bool = False, depth: int = 32) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        # No column has as many dimensions: deeper values are rejected as they are.
        return [_plain(item, depth=depth - 1) for item in value] if depth else value
    if isinstance(value, np.generic):
        value = value.astype(TIME).item() if isinstance(value, np.datetime64) else value.item()
    if isinstance(value, float) and math.isnan(value) and not keep_nan:
        return None
    # pandas.NA and NaT compare unequal to themselves, or refuse to be compared.
    return None if type(value).__name__ in {"NAType", "NaTType"} else value
