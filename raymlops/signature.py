"""The inputs and outputs of a model: named, typed columns, validated strictly and converted to arrays.

Owns the types of columns and the conversion between rows (lists of dicts) and columns (name to array); ``arrays``
validates the values of one column. Knows nothing of models, servers or files. Imports numpy alone, so that a client can
use it.

Arrays, for n rows:

========== ======================= =====================================
type        array                   missing (only where ``nullable``)
========== ======================= =====================================
``float``   float64 (n, *shape)     NaN
``int``     int64 (n, *shape)       a nullable int column is float64, NaN
``bool``    bool (n, *shape)        not allowed
``string``  object (n,)             None
========== ======================= =====================================

A column whose shape has a None (variable length) is an object array of n arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from raymlops.arrays import (
    MAX_PROBLEMS,
    MISSING,
    Column,
    Columns,
    as_integer,
    careful_array,
    expected,
    kind_of,
    known_texts,
    missing_array,
    quick_array,
    whole_array,
)
from raymlops.errors import InvalidRowsError, RowProblem

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
        ``"1"`` are not numbers, 1 is a float, 1.0 is not an int, NaN and infinity are rejected.

        Raises:
            InvalidRowsError: naming row and field of the first problems found (at most 20).
        """
        columns = self._quick_rows(rows)
        return self._careful_rows(rows) if columns is None else columns

    def parse_columns(self, data: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """Turn named sequences or arrays (a DataFrame's columns, Arrow's ``to_pydict``) into input columns.

        Raises:
            InvalidRowsError: as ``parse_rows``; NaN counts as missing.
        """
        lists = {
            str(name): values.tolist() if hasattr(values, "tolist") else list(values) for name, values in data.items()
        }
        lengths = {name: len(values) for name, values in lists.items()}
        if len(set(lengths.values())) > 1:
            raise InvalidRowsError([RowProblem(None, None, _differing(lengths))])
        columns = self._quick_columns(lists)
        if columns is not None:
            return columns
        floats = {column.name for column in self.inputs if column.type == "float" and not column.nullable}
        rows = [
            {name: _plain(value, keep_nan=name in floats) for name, value in zip(lists, values, strict=True)}
            for values in zip(*lists.values(), strict=True)
        ]
        integral = {column.name for column in self.inputs if column.type == "int"}
        for row in rows:
            for name in integral & row.keys():
                row[name] = as_integer(row[name])
        return self.parse_rows(rows)

    def parse_arrays(self, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Turn whole arrays, one a column, into input columns, which are writable.

        A column's array has the shape ``(rows, *shape)``; a free dimension has any length, the same for all rows. Float
        columns take floats and integers, int columns integers, nullable int columns also floats that are whole
        numbers. NaN is missing, as None is in an object array of strings. A nullable column may be left out.

        Raises:
            InvalidRowsError: as ``parse_rows``.
        """
        known = {column.name for column in self.inputs}
        problems = [
            RowProblem(None, name[:80], f"unknown field; known: {', '.join(sorted(known))}")
            for name in arrays
            if name not in known
        ]
        lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
        if not problems and len(set(lengths.values())) > 1:
            problems.append(RowProblem(None, None, _differing(lengths)))
        if not problems and not any(lengths.values()):
            problems.append(RowProblem(None, None, "expected at least one row, got none"))
        columns = {}
        for column in self.inputs if not problems else ():
            array = arrays.get(column.name)
            if array is not None:
                columns[column.name] = whole_array(column, array, problems)
            elif column.nullable:
                columns[column.name] = missing_array(column, max(lengths.values()))
            else:
                problems.append(RowProblem(None, column.name, f"is missing; expected {expected(column)}"))
        if problems:
            raise InvalidRowsError(problems[:MAX_PROBLEMS])
        return columns

    def rows(self, columns: Columns) -> list[dict[str, Any]]:
        """Turn input or output columns into JSON rows, missing values as null.

        A nullable integer column, whose array is float64, gives integers.
        """
        integers = {column.name for column in (*self.inputs, *self.outputs) if column.type == "int"}
        lists = {name: [_plain(value) for value in np.asarray(array).tolist()] for name, array in columns.items()}
        for name in integers & lists.keys():
            lists[name] = [int(v) if isinstance(v, float) and v.is_integer() else v for v in lists[name]]
        return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]

    def _quick_rows(self, rows: Any) -> dict[str, npt.NDArray[Any]] | None:
        """Return the columns of rows that are valid as they are; None where ``_careful_rows`` has to check."""
        if type(rows) is not list or not rows or set(map(type, rows)) != {dict}:
            return None
        names, get, plan = self._planned()
        fields = len(rows) * len(names)
        table: Any
        try:
            table = zip(*map(get, rows), strict=True) if len(names) > 1 else [list(map(get, rows))]
        except KeyError:  # a field is missing, which a nullable one may be
            table = [[row.get(name, MISSING) for row in rows] for name in names]
            fields -= sum(values.count(MISSING) for values in table)
            table = [[None if value is MISSING else value for value in values] for values in table]
        if sum(map(len, rows)) != fields:  # a row has a field that no column has
            return None
        columns = {}
        for (column, known), values in zip(plan, table, strict=True):
            array = quick_array(column, values, known)
            if array is None:
                return None
            columns[column.name] = array
        return columns

    def _quick_columns(self, lists: Mapping[str, list[Any]]) -> dict[str, npt.NDArray[Any]] | None:
        names, _, plan = self._planned()
        if lists.keys() != set(names) or not all(lists.values()):
            return None
        columns = {}
        for column, known in plan:
            values = lists[column.name]
            array = quick_array(column, values, known)
            if array is None:
                array = quick_array(column, _jsonlike(column, values), known)
            if array is None:
                return None
            columns[column.name] = array
        return columns

    def _planned(self) -> _Plan:
        try:
            return self._plan
        except AttributeError:
            names = tuple(column.name for column in self.inputs)
            plan: _Plan = (names, itemgetter(*names), [(column, known_texts(column)) for column in self.inputs])
            object.__setattr__(self, "_plan", plan)
            return plan

    def _careful_rows(self, rows: Any) -> dict[str, npt.NDArray[Any]]:
        if not isinstance(rows, list) or not rows:
            got = "an empty list" if isinstance(rows, list) else kind_of(rows)
            raise InvalidRowsError([RowProblem(None, None, f"expected a non-empty list of rows, got {got}")])
        problems: list[RowProblem] = []
        names = {column.name for column in self.inputs}
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                problems.append(RowProblem(index, None, f"expected an object of named fields, got {kind_of(row)}"))
            elif row.keys() - names:
                problems += [
                    RowProblem(index, str(key)[:80], f"unknown field; known: {', '.join(sorted(names))}")
                    for key in sorted(row.keys() - names, key=str)[:MAX_PROBLEMS]
                ]
            if len(problems) >= MAX_PROBLEMS:
                break
        if not all(isinstance(row, dict) for row in rows):
            raise InvalidRowsError(problems[:MAX_PROBLEMS])
        columns = {}
        wrong: list[RowProblem] = []
        for column in self.inputs:
            values = [row.get(column.name, MISSING) for row in rows]
            columns[column.name] = careful_array(column, values, wrong)
            if len(wrong) >= MAX_PROBLEMS:
                break
        if problems or wrong:
            found = sorted([*problems, *wrong], key=lambda problem: problem.row or 0)
            raise InvalidRowsError(found[:MAX_PROBLEMS])
        return columns


def _differing(lengths: Mapping[str, int]) -> str:
    shown = ", ".join(f"{name[:80]} {length}" for name, length in list(lengths.items())[:MAX_PROBLEMS])
    return f"columns differ in length: {shown}"


def _jsonlike(column: Column, values: list[Any]) -> list[Any]:
    """Return values as in JSON, where an array or a DataFrame holds NaN for null and 7.0 for 7."""
    if column.nullable:
        values = [None if type(value) is float and math.isnan(value) else value for value in values]
    if column.type == "int":
        values = list(map(as_integer, values))
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
        value = value.item()
    if isinstance(value, float) and math.isnan(value) and not keep_nan:
        return None
    # pandas.NA and NaT compare unequal to themselves, or refuse to be compared.
    return None if type(value).__name__ in {"NAType", "NaTType"} else value
