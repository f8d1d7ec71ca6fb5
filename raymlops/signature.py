"""What a model takes and gives: named, typed columns, checked strictly and turned into arrays.

Owns the types of columns and the conversion between rows (lists of dicts) and columns (name to array).
Knows nothing of models, servers or files. Imports numpy alone, so that a client can use it.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from raymlops.errors import InvalidRowsError, RowProblem

ColumnType = Literal["float", "int", "bool", "string"]
Columns = Mapping[str, npt.NDArray[Any]]

MAX_PROBLEMS = 20
_DTYPES: dict[str, Any] = {"float": np.float64, "int": np.int64, "bool": np.bool_, "string": object}
_JSON_TYPES = {"float": "number", "int": "integer", "bool": "boolean", "string": "string"}
_INT64 = (-(2**63), 2**63 - 1)


@dataclass(frozen=True, slots=True)
class Column:
    """One named, typed column.

    ``shape`` is the shape of one value: ``()`` for a scalar, ``(8, 8)`` for a tensor, None for a free dimension.
    ``categories`` are the values known at training time; ``unknown`` says what a request with
    another one gets: ``"accept"`` (the recipe encodes it as unknown) or ``"reject"`` (an error).
    """

    name: str
    type: ColumnType
    nullable: bool = False
    shape: tuple[int | None, ...] = ()
    categories: tuple[str, ...] | None = None
    unknown: Literal["accept", "reject"] = "accept"
    description: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            msg = "a column needs a name"
            raise ValueError(msg)
        if self.type not in _DTYPES:
            msg = f"column {self.name!r}: type {self.type!r} is not one of {', '.join(_DTYPES)}"
            raise ValueError(msg)
        if self.shape and self.type == "string":
            msg = f"column {self.name!r}: a string column has no shape"
            raise ValueError(msg)
        if self.nullable and (self.type == "bool" or self.shape):
            msg = f"column {self.name!r}: only scalar float, int and string columns can be nullable"
            raise ValueError(msg)

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of one value."""
        schema: dict[str, Any] = {"type": _JSON_TYPES[self.type]}
        if self.categories is not None and self.unknown == "reject":
            schema["enum"] = [*self.categories, *([None] if self.nullable else [])]
        for size in reversed(self.shape):
            schema = {"type": "array", "items": schema}
            if size is not None:
                schema |= {"minItems": size, "maxItems": size}
        if self.nullable:
            schema["type"] = [schema["type"], "null"]
        if self.description:
            schema["description"] = self.description
        return schema


@dataclass(frozen=True, slots=True)
class Signature:
    """The columns a model takes (``inputs``) and gives (``outputs``)."""

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
        ``"1"`` are no numbers, 1 is a float, 1.0 is no int, NaN and infinity are refused.

        Raises:
            InvalidRowsError: naming row and field of the first problems found (at most 20).
        """
        if not isinstance(rows, list) or not rows:
            got = "an empty list" if isinstance(rows, list) else _kind(rows)
            raise InvalidRowsError([RowProblem(None, None, f"expected a non-empty list of rows, got {got}")])
        problems: list[RowProblem] = []
        names = {column.name for column in self.inputs}
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                problems.append(RowProblem(index, None, f"expected an object of named fields, got {_kind(row)}"))
            elif row.keys() - names:
                problems += [
                    RowProblem(index, str(key), f"unknown field; known: {', '.join(sorted(names))}")
                    for key in sorted(row.keys() - names, key=str)
                ]
            if len(problems) >= MAX_PROBLEMS:
                raise InvalidRowsError(problems[:MAX_PROBLEMS])
        if problems:
            raise InvalidRowsError(problems)
        columns = {}
        for column in self.inputs:
            values = [row.get(column.name, _MISSING) for row in rows]
            columns[column.name] = _to_array(column, values, problems)
            if len(problems) >= MAX_PROBLEMS:
                break
        if problems:
            raise InvalidRowsError(problems[:MAX_PROBLEMS])
        return columns

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
            raise InvalidRowsError([RowProblem(None, None, f"columns differ in length: {lengths}")])
        floats = {column.name for column in self.inputs if column.type == "float" and not column.nullable}
        rows = [
            {name: _plain(value, keep_nan=name in floats) for name, value in zip(lists, values, strict=True)}
            for values in zip(*lists.values(), strict=True)
        ]
        integral = {column.name for column in self.inputs if column.type == "int"}
        for row in rows:
            for name in integral & row.keys():
                value = row[name]
                if isinstance(value, float) and value.is_integer():
                    row[name] = int(value)
        return self.parse_rows(rows)

    def rows(self, columns: Columns) -> list[dict[str, Any]]:
        """Turn input or output columns into JSON rows, missing values as null.

        A nullable integer column, whose array is float64, gives integers.
        """
        integers = {column.name for column in (*self.inputs, *self.outputs) if column.type == "int"}
        lists = {name: [_plain(value) for value in np.asarray(array).tolist()] for name, array in columns.items()}
        for name in integers & lists.keys():
            lists[name] = [int(v) if isinstance(v, float) and v.is_integer() else v for v in lists[name]]
        return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


_MISSING = object()


def _column(item: Mapping[str, Any]) -> Column:
    known = {key: item[key] for key in Column.__dataclass_fields__ if key in item}
    known["shape"] = tuple(known.get("shape") or ())
    if known.get("categories") is not None:
        known["categories"] = tuple(known["categories"])
    return Column(**known)


def _plain(value: Any, *, keep_nan: bool = False) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and math.isnan(value) and not keep_nan:
        return None
    # pandas.NA and NaT compare unequal to themselves, or refuse to be compared.
    return None if type(value).__name__ in {"NAType", "NaTType"} else value


def _to_array(column: Column, values: list[Any], problems: list[RowProblem]) -> npt.NDArray[Any]:
    check = _CHECKS[column.type]
    known = set(column.categories) if column.categories is not None and column.unknown == "reject" else None
    for index, value in enumerate(values):
        if value is None or value is _MISSING:
            if not column.nullable:
                what = "is missing" if value is _MISSING else "must not be null"
                problems.append(RowProblem(index, column.name, f"{what}; expected {_expected(column)}"))
        elif column.shape:
            message = _check_tensor(column, value, column.shape)
            if message:
                problems.append(RowProblem(index, column.name, message))
        elif not check(value):
            problems.append(RowProblem(index, column.name, f"expected {_expected(column)}, got {_kind(value)}"))
        elif known is not None and value not in known:
            allowed = ", ".join(sorted(known)[:12]) + (" ..." if len(known) > 12 else "")
            problems.append(RowProblem(index, column.name, f"unknown category {value!r}; known: {allowed}"))
        if len(problems) >= MAX_PROBLEMS:
            break
    if problems:
        return np.empty(0)
    if None in column.shape:
        ragged = np.empty(len(values), dtype=object)
        for index, value in enumerate(values):
            ragged[index] = np.asarray(value, dtype=_DTYPES[column.type])
        return ragged
    if column.nullable:
        missing = None if column.type == "string" else math.nan
        dtype = object if column.type == "string" else np.float64
        return np.array([missing if v is None or v is _MISSING else v for v in values], dtype=dtype)
    return np.array(values, dtype=_DTYPES[column.type])


def _check_tensor(column: Column, value: Any, shape: Sequence[int | None]) -> str | None:
    if not shape:
        return None if _CHECKS[column.type](value) else f"expected {_expected(column)}, got an element {_kind(value)}"
    if not isinstance(value, list):
        return f"expected {_expected(column)}, got {_kind(value)}"
    if shape[0] is not None and len(value) != shape[0]:
        return f"expected {_expected(column)}, got a dimension of length {len(value)}"
    return next((m for item in value if (m := _check_tensor(column, item, shape[1:]))), None)


def _is_float(value: Any) -> bool:
    if type(value) is float:
        return math.isfinite(value)
    return type(value) is int and _INT64[0] <= value <= _INT64[1]


def _is_int(value: Any) -> bool:
    return type(value) is int and _INT64[0] <= value <= _INT64[1]


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "float": _is_float,
    "int": _is_int,
    "bool": lambda value: type(value) is bool,
    "string": lambda value: type(value) is str,
}


def _expected(column: Column) -> str:
    noun = {"float": "a finite number", "int": "an integer", "bool": "true or false", "string": "a string"}
    if not column.shape:
        return noun[column.type] + (" or null" if column.nullable else "")
    dims = ", ".join("any" if size is None else str(size) for size in column.shape)
    return f"an array of shape ({dims}) of {column.type}"


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, str):
        return f"the string {value[:40]!r}"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
