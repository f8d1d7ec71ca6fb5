"""One version of a Delta table: its files, the values of their partitions, and the table's columns.

What is read later is this list of files, so that all processes, and a run that is resumed, read the same rows while the
table is written. Knows nothing of rows.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from raymlops.config.credentials import redact
from raymlops.config.paths import local_path
from raymlops.errors import UsageError
from raymlops.storage import filesystem
from raymlops.storage.delta.tables import errors, load

if TYPE_CHECKING:
    from raymlops.storage.delta.names import TableName

    Partition = tuple[tuple[str, str | None], ...]

_READ = {
    "timestampNtz",
    "typeWidening",
    "typeWidening-preview",
    "v2Checkpoint",
    "vacuumProtocolCheck",
    "deletionVectors",
}
"""What a table may ask of its readers; of deletion vectors that no file has one."""


@dataclass(frozen=True)
class Snapshot:
    """A version of a table, or of some of its partitions."""

    name: str
    """By which the same rows are read again: ``s3://bucket/table@v3``."""
    uri: str
    version: int
    schema: str
    """The columns of all rows: an Arrow schema, serialized, in base64."""

    def __str__(self) -> str:
        return f"version {self.version} of the Delta table {redact(self.uri)}"

    @cached_property
    def columns(self) -> Any:
        """Return the columns as a ``pyarrow.Schema``."""
        import pyarrow as pa

        return pa.ipc.read_schema(pa.py_buffer(b64decode(self.schema)))


@dataclass(frozen=True)
class TableFile:
    """A Parquet file of a table, with the values of its partition as text."""

    uri: str
    partition: Partition


def read_snapshot(name: TableName) -> tuple[Snapshot, list[TableFile]]:
    """Return a version of a table and its files, in the order of their partitions, and within one of writing.

    Raises:
        UsageError: there is no such table, version or partition, or it asks of a reader what raymlops cannot do.
        StorageError: the storage does not answer, or the log is damaged.
    """
    import pyarrow as pa

    table = load(name)
    with errors(name.uri):
        columns = pa.schema(table.schema().to_arrow())
        partitioned_by = table.metadata().partition_columns
        _refuse_features(table, name)
        actions = pa.table(table.get_add_actions(flatten=True))
    if unknown := [column for column, _ in name.partitions if column not in partitioned_by]:
        raise UsageError(
            f"{name} names a partition by {unknown[0]!r}, but the Delta table is "
            + (f"partitioned by {', '.join(partitioned_by)}" if partitioned_by else "not partitioned"),
            hint="Only partitions can be chosen in a name; filter other rows in datasets().",
        )
    snapshot = Snapshot(
        name=str(name.with_version(table.version())),
        uri=name.uri,
        version=table.version(),
        schema=b64encode(columns.serialize().to_pybytes()).decode(),
    )
    texts = {column: actions[f"partition.{column}"].cast(pa.string()).to_pylist() for column in partitioned_by}
    rows = zip(*texts.values(), strict=True) if texts else [()] * actions.num_rows
    found = sorted(
        (tuple(value or "" for value in values), written, path, tuple(zip(texts, values, strict=True)))
        for values, written, path in zip(
            rows, actions["modification_time"].to_pylist(), actions["path"].to_pylist(), strict=True
        )
    )
    wanted = set(name.partitions)
    return snapshot, [TableFile(_at(name.uri, path), pairs) for *_, path, pairs in found if wanted <= set(pairs)]


def _at(uri: str, path: str) -> str:
    """Return where a file is, by its path in the log, which is that of a URL."""
    if "://" in path:
        return path
    path = unquote(path)
    return filesystem.join(uri, path if local_path(uri) is not None else quote(path, safe="/="))


def _refuse_features(table: Any, name: TableName) -> None:
    """Reject a table whose rows are not just those of its files, under the same names.

    Raises:
        UsageError: naming the feature, and how to do without it.
    """
    import pyarrow as pa

    protocol = table.protocol()
    asked = set(protocol.reader_features or ())
    mapped = table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none"
    where = f"version {table.version()} of the Delta table {redact(name.uri)!r}"
    if mapped:
        raise UsageError(
            f"{where} maps its columns to other names in its files, which raymlops does not read",
            hint="ALTER TABLE ... SET TBLPROPERTIES ('delta.columnMapping.mode' = 'none'); or copy the table.",
        )
    if "deletionVectors" in asked and pa.table(table.deletion_vectors()).num_rows:
        raise UsageError(
            f"{where} has rows that are deleted by deletion vectors, which raymlops does not read",
            hint="In Spark: REORG TABLE ... APPLY (PURGE), which writes a version without them.",
        )
    if unknown := sorted(asked - _READ - {"columnMapping"}):
        raise UsageError(
            f"{where} asks of its readers what raymlops does not do: {', '.join(unknown)}",
            hint="Copy the table into one without these features.",
        )
