"""How pyarrow reads Parquet here, for all who read files that others wrote.

Times in Spark's INT96 become microseconds: as pyarrow's nanoseconds, those before 1677 and after 2262 are other times,
without an error. INT96 is always an instant, so they are in UTC; pyarrow gives them no time zone, as it does to times
of no place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymlops.storage.filesystem import open_filesystem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def open_parquet(uri: str) -> Any:
    """Return a file as a ``pyarrow.parquet.ParquetFile``; ``columns_of`` and ``rows_of`` say what it holds.

    Raises:
        OSError, pyarrow.ArrowException: it cannot be read.
    """
    import pyarrow.parquet as pq

    filesystem, path = open_filesystem(uri)
    return pq.ParquetFile(
        filesystem.open_input_file(path),
        pre_buffer=True,
        page_checksum_verification=True,
        coerce_int96_timestamp_unit="us",
    )


def columns_of(file: Any) -> Any:
    """Return the columns of an opened file, as a ``pyarrow.Schema``."""
    import pyarrow as pa

    schema = file.schema_arrow
    kinds = [file.schema.column(number).physical_type for number in range(len(file.schema))]
    if "INT96" not in kinds:
        return schema
    leaves = iter(kinds)  # in the order in which the columns and their fields hold them
    fields = [field.with_type(_with_instants(field.type, leaves)) for field in schema]
    return pa.schema(fields, metadata=schema.metadata)


def rows_of(file: Any, group: int, columns: Sequence[str] | None = None) -> Any:
    """Return a row group of an opened file, or those ``columns`` of it, as a ``pyarrow.Table``.

    Raises:
        OSError, pyarrow.ArrowException: it cannot be read.
    """
    table, schema = file.read_row_group(group, columns=columns), columns_of(file)
    for place, name in enumerate(table.column_names):
        if (field := schema.field(name)).type != table.schema.field(place).type:
            table = table.set_column(place, field, table.column(place).cast(field.type))
    return table


def parquet_format() -> Any:
    """Return the format of files in a ``pyarrow.dataset.Dataset``, whose schema is that of ``columns_of``."""
    import pyarrow.dataset as ds

    return ds.ParquetFileFormat(coerce_int96_timestamp_unit="us")


def _with_instants(kind: Any, leaves: Iterator[str]) -> Any:
    """Return a type with times in UTC where the file has INT96; ``leaves`` are the file's types of what it holds."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_with_instants(field.type, leaves)) for field in kind])
    if pa.types.is_map(kind):
        fields = [field.with_type(_with_instants(field.type, leaves)) for field in (kind.key_field, kind.item_field)]
        return pa.map_(*fields, keys_sorted=kind.keys_sorted)
    if pa.types.is_nested(kind):
        item = kind.value_field.with_type(_with_instants(kind.value_type, leaves))
        if pa.types.is_fixed_size_list(kind):
            return pa.list_(item, kind.list_size)
        makers = {pa.types.is_large_list: pa.large_list, pa.types.is_list: pa.list_}
        return next((make(item) for is_kind, make in makers.items() if is_kind(kind)), kind)
    naive = next(leaves) == "INT96" and getattr(kind, "tz", None) is None
    return pa.timestamp("us", "UTC") if naive else kind
