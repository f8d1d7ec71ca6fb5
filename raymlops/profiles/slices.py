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
        """Return which rows are in it; None where the column is not there."""
        if self.column not in columns:
            return None
        values = columns[self.column]
        if isinstance(values, pa.Array | pa.ChunkedArray):
            found = pc.fill_null(pc.equal(values, pa.scalar(self.value)), False)
            return np.asarray(found.to_numpy(zero_copy_only=False), np.bool_)
        return np.asarray(np.asarray(values) == self.value, np.bool_)


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
