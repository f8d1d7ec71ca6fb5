"""Rows of files that do not hold all columns: of a Delta table, in its types, or of folders that are named by values.

Pure: knows nothing of where files are.
"""

from __future__ import annotations

import re
from functools import reduce
from operator import and_
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raymlops.data.parquet.reading import parquet_format

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def completed(
    rows: pa.Table, schema: pa.Schema, partition: Mapping[str, str | None], columns: Sequence[str] | None = None
) -> pa.Table:
    """Return rows of a file with those ``columns`` that the table has, by default all, in the table's types.

    A column of ``partition`` has one value in all rows, by its text; one that the table got later is null.

    Raises:
        pyarrow.ArrowException: the file holds another type that cannot become the table's.
    """
    wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns if name in schema.names])
    arrays = []
    for field in wanted:
        if field.name in partition:
            arrays.append(pa.repeat(_value(partition[field.name], field.type), rows.num_rows))
        elif field.name in rows.column_names:
            arrays.append(rows[field.name].cast(field.type))
        else:
            arrays.append(pa.nulls(rows.num_rows, field.type))
    return pa.table(arrays, names=wanted.names)


def as_dataset(
    places: Sequence[tuple[Any, str]], partitions: Sequence[Mapping[str, str | None]], schema: pa.Schema
) -> Any:
    """Return files, each by its filesystem and path, as a ``pyarrow.dataset.Dataset`` with the table's columns."""
    import pyarrow.dataset as ds

    form = parquet_format()

    def where(partition: Mapping[str, str | None]) -> Any:
        fields = {name: _value(text, schema.field(name).type) for name, text in partition.items()}
        parts = [
            ds.field(name) == value if value.is_valid else ds.field(name).is_null() for name, value in fields.items()
        ]
        return reduce(and_, parts) if parts else None

    fragments = [
        form.make_fragment(path, filesystem, partition_expression=where(partition))
        for (filesystem, path), partition in zip(places, partitions, strict=True)
    ]
    return ds.FileSystemDataset(fragments, schema, form, filesystem=places[0][0])


def folder_columns(partitions: Sequence[Mapping[str, str | None]]) -> pa.Schema:
    """Return the columns that names of folders hold, a mapping for each file: int64 where all are whole, or texts.

    ``08`` is 8, as in Spark, so that the hours and months of a day or year are of one type, whichever of them are read.
    """
    texts: dict[str, set[str | None]] = {}
    for partition in partitions:
        for name, value in partition.items():
            texts.setdefault(name, set()).add(value)
    kinds = {name: pa.int64() if all(map(_is_int64, found)) else pa.string() for name, found in texts.items()}
    return pa.schema(list(kinds.items()))


def _is_int64(text: str | None) -> bool:
    if text is None:
        return True
    return re.fullmatch(r"-?[0-9]{1,19}", text) is not None and -(2**63) <= int(text) < 2**63


def _value(text: str | None, kind: pa.DataType) -> pa.Scalar:
    return pa.scalar(text, pa.string()).cast(kind)
