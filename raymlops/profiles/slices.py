"""Slices: the rows of a table with one value in one column, which have profiles of their own on the table's layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Value = str | int | float | bool


class Slice(NamedTuple):
    """Rows whose ``column`` has this value."""

    column: str
    value: Value

    @property
    def name(self) -> str:
        """Return ``COLUMN=VALUE``."""
        return f"{self.column}={self.value}"

    def qualify(self, name: str) -> str:
        """Return how what is of this slice alone is called: ``features[carrier=AA]`` of ``features``."""
        return f"{name}[{self.name}]"

    def rows(self, columns: Mapping[str, Any]) -> npt.NDArray[np.bool_] | None:
        """Return which rows are in it, none of a column of another type; None where the column is not there."""
        if self.column not in columns:
            return None
        values = columns[self.column]
        if isinstance(values, pa.Array | pa.ChunkedArray):
            if not _is_of_type(values.type, self.value):
                return np.zeros(len(values), np.bool_)
            # As the column holds it: a tenth in 32 bits is not a tenth in 64.
            value = pa.scalar(self.value, values.type if pa.types.is_floating(values.type) else None)
            found = pc.fill_null(pc.equal(values, value), False)
            return np.asarray(found.to_numpy(zero_copy_only=False), np.bool_)
        array = np.asarray(values)
        gaps = isinstance(self.value, bool) and array.dtype == np.float64  # truth values, of which some are missing
        typed = gaps or array.dtype == object or _is_of_type(pa.from_numpy_dtype(array.dtype), self.value)
        if array.ndim != 1 or not typed:
            return np.zeros(len(array), np.bool_)
        found = array == self.value
        if array.dtype == object:  # True is 1
            found &= [isinstance(each, bool | np.bool_) == isinstance(self.value, bool) for each in array]
        return np.asarray(found, np.bool_)


def _is_of_type(column: pa.DataType, value: Value) -> bool:
    """Return whether a column can have a value."""
    if isinstance(value, bool):
        return bool(pa.types.is_boolean(column))
    if isinstance(value, str):
        text = column.value_type if pa.types.is_dictionary(column) else column
        return bool(pa.types.is_string(text) or pa.types.is_large_string(text))
    return bool(pa.types.is_integer(column) or pa.types.is_floating(column))


def parts_of(
    slices: Iterable[Slice], columns: Mapping[str, Any], chosen_by: Mapping[str, Any]
) -> Iterator[tuple[Slice, dict[str, Any], npt.NDArray[np.int64]]]:
    """Yield each slice's rows of some columns, by the values that ``chosen_by`` has, and their numbers."""
    for each in slices:
        mask = each.rows(chosen_by)
        if mask is not None and mask.any():
            numbers = np.flatnonzero(mask)
            taken = {name: _taken(values, numbers) for name, values in columns.items()}
            yield each, taken, numbers


def _taken(values: Any, numbers: npt.NDArray[np.int64]) -> Any:
    if hasattr(values, "keys"):
        return {measure: each[numbers] for measure, each in values.items()}
    return values.take(pa.array(numbers)) if isinstance(values, pa.Array | pa.ChunkedArray) else values[numbers]
