"""Rows of a file as a model's inputs: what training takes of a file, and a problem for each row that it would not.

Pure: knows nothing of where the rows are from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymlops.arrays import whole_values
from raymlops.data.columns import as_column
from raymlops.data.tables.arrow import from_arrow
from raymlops.errors import InvalidRowsError, RecipeError, RowProblem
from raymlops.images import png_files

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from raymlops.arrays import Column, Columns
    from raymlops.signature import Signature


def parsed(rows: pa.Table, signature: Signature) -> Columns:
    """Return the inputs of a model: columns that training takes, with values that a request may have.

    Raises:
        InvalidRowsError: naming the rows, or the column where it is of a type that training does not take.
    """
    stored = {column: rows.column(column.name) for column in signature.inputs if column.name in rows.column_names}
    if not stored:  # the number of rows is not in the columns; each lacks every field
        return signature.parse_rows([{}] * rows.num_rows)
    values, refused = {}, []
    for column, found in stored.items():
        values[column.name], why = _values(column, found)
        if why:
            refused.append(RowProblem(None, column.name, f"expected {column.type}, which training reads, but {why}"))
    if all(each is not None for each in values.values()):
        columns = signature.parse_columns(values)  # names the rows that keep a column from being taken
    if refused:
        raise InvalidRowsError(refused)
    return columns


def _values(column: Column, stored: pa.ChunkedArray) -> tuple[Sequence[Any] | None, str]:
    """Return a column's values, as far as Python has them, and why training does not take it; "" where it does."""
    try:
        array = from_arrow(column.name, stored)
    except RecipeError as error:
        try:
            return stored.to_pylist(), error.message
        except (ValueError, OverflowError):  # times that no ``datetime`` is
            return None, error.message
    if column.type == "image" and array.dtype == object and all(isinstance(each, bytes | None) for each in array):
        return array.tolist(), ""  # files, which are decoded once
    array, why = as_column(column, array)
    if column.type == "image" and not why:
        return png_files(array), ""
    values = array.tolist() if why else whole_values(column, array)
    if stored.null_count:
        values = [None if absent else value for absent, value in zip(stored.is_null().to_pylist(), values, strict=True)]
    return values, f"it {why}" if why else ""
