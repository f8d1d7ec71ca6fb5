"""Put Parquet files into a Delta table: all of them in one commit, once for each piece of work.

Files lie in the table's folder before, where no reader looks for them; what a killed process left of them goes with the
next VACUUM. A commit names the piece of work that it is, by Delta's own transaction identifiers, so that the same work
done again, or by two processes at once, is in the table once.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raymlops.config.credentials import redact
from raymlops.errors import StorageError, UsageError
from raymlops.storage.delta.names import TableName
from raymlops.storage.delta.tables import address, errors, has_table, library, load_if_there, storage_options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TRIES = 20
"""Each is lost to a commit of another writer that made progress."""
_KEPT = {
    "appendOnly",
    "changeDataFeed",
    "checkConstraints",
    "columnMapping",
    "deletionVectors",
    "generatedColumns",
    "invariants",
    "timestampNtz",
    "v2Checkpoint",
    "vacuumProtocolCheck",
}
"""What a table may ask of its writers; some of it only where no column uses it."""
_BY_WRITER = ("delta.invariants", "delta.generationExpression", "delta.identity")
"""What a column may ask of its writers, which no file shows to be kept."""


@dataclass(frozen=True)
class NewFile:
    """A Parquet file below a table's folder; it does not hold the columns of its ``partition``."""

    path: str
    size: int
    rows: int
    partition: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TableWriter:
    """Writes rows of one schema into a table, which is created with the first of them."""

    uri: str
    schema: Any
    """A ``pyarrow.Schema``."""
    partitioned_by: tuple[str, ...] = ()
    replaces: bool = False
    """Whether new files take the place of those of their partitions, and new columns are added to the table."""

    def version_with(self, work: str) -> int | None:
        """Return the version of a table that this piece of work made; None for one that has not.

        Raises:
            UsageError: the table does not take rows of this schema.
            StorageError: the storage does not answer.
        """
        return self._version_in(self._checked(), work)

    def commit(
        self,
        files: Sequence[NewFile],
        *,
        work: str,
        about: Mapping[str, str],
        partition: Mapping[str, str] | None = None,
    ) -> int:
        """Put files into the table, unless it has this piece of work; return the version that has them.

        ``about`` is kept with the commit. ``partition`` is the one that they replace.

        Raises:
            UsageError: the table does not take them any more; nothing was changed.
            StorageError: the storage does not answer, or other writers were always faster.
        """
        module = library().exceptions
        for _ in range(_TRIES):
            table = self._checked()
            if (found := self._version_in(table, work)) is not None and not self.replaces:
                return found
            with errors(self.uri):
                try:
                    return self._commit(table, files, work=work, about=about, partition=partition or {})
                except module.CommitFailedError:
                    continue  # the table was written meanwhile
                except module.DeltaError:
                    if table is not None or not has_table(self.uri):
                        raise  # else it was made meanwhile
        raise StorageError(
            f"the Delta table {redact(self.uri)!r} could not be written: other writers were faster {_TRIES} times",
            hint="Run it again when fewer of them write.",
        )

    def _version_in(self, table: Any, work: str) -> int | None:
        if table is None:
            return None
        with errors(self.uri):
            found = table.transaction_version(work)
        return None if found is None else int(found)

    def _commit(
        self, table: Any, files: Sequence[NewFile], *, work: str, about: Mapping[str, str], partition: Mapping[str, str]
    ) -> int:
        from deltalake import CommitProperties, Transaction
        from deltalake.transaction import AddAction, create_table_with_add_actions

        version, now = 0 if table is None else int(table.version()) + 1, int(time.time() * 1000)
        actions = [
            AddAction(file.path, file.size, dict(file.partition), now, True, json.dumps({"numRecords": file.rows}))
            for file in files
        ]
        properties = CommitProperties(
            custom_metadata=dict(about),
            max_commit_retries=0,  # what is committed is what was checked, as this version
            app_transactions=[Transaction(work, version, last_updated=now)],
        )
        if table is None:
            create_table_with_add_actions(
                address(self.uri),
                self._delta_schema(),
                actions,
                mode="error",
                partition_by=list(self.partitioned_by),
                storage_options=storage_options(self.uri),
                commit_properties=properties,
            )
            return version
        table.create_write_transaction(
            actions,
            "overwrite" if self.replaces else "append",
            self._delta_schema(),
            list(self.partitioned_by),
            partition_filters=[(name, "=", value) for name, value in partition.items()] if self.replaces else None,
            commit_properties=properties,
        )
        return version

    def _delta_schema(self) -> Any:
        """Return the schema as Delta has it.

        Raises:
            UsageError: naming the column whose type no Delta table has.
        """
        import pyarrow as pa

        schema_of = library().Schema.from_arrow
        for column in self.schema:
            try:
                schema_of(pa.schema([column]))
            except Exception as error:
                raise UsageError(
                    f"the column {column.name!r} is {column.type}, which no Delta table can hold",
                    hint="Leave it out, or write Parquet.",
                ) from error
        return schema_of(self.schema)

    def _checked(self) -> Any:
        """Return the table after a check that it takes these rows; None where there is none yet."""
        import pyarrow as pa

        ours = pa.schema(self._delta_schema().to_arrow())
        table = load_if_there(TableName(self.uri))
        if table is None:
            return None
        where = f"the Delta table {redact(self.uri)!r}"
        with errors(self.uri):
            there = pa.schema(table.schema().to_arrow())
            by, asks = tuple(table.metadata().partition_columns), _asks(table)
        if asks:
            raise UsageError(
                f"{where} asks of its writers what raymlops does not do: {', '.join(asks)}",
                hint="Write to another table, and from there into this one.",
            )
        if by != self.partitioned_by:
            wanted = f"by {', '.join(self.partitioned_by)}" if self.partitioned_by else "not partitioned"
            raise UsageError(
                f"{where} is partitioned by {', '.join(by) or 'nothing'}; one that is written here is {wanted}",
                hint="Write to another table.",
            )
        if problems := self._problems(ours, there):
            raise UsageError(
                f"{where} has other columns: {'; '.join(problems)}",
                hint="Change the table, write to another one, or leave columns out.",
            )
        return table

    def _problems(self, ours: Any, there: Any) -> list[str]:
        problems = []
        for column in ours:
            if column.name not in there.names:
                problems += [] if self.replaces else [f"{column.name} ({column.type}) is not there"]
            elif not self.replaces and there.field(column.name).type != column.type:
                problems.append(f"{column.name} is {there.field(column.name).type} there, and {column.type} here")
        for column in there:
            if column.name not in ours.names and (self.replaces or not column.nullable):
                problems.append(f"{column.name} is there, and no row here has it")
        return problems


def _asks(table: Any) -> list[str]:
    """Return what a table asks of its writers that files alone cannot show."""
    metadata = table.metadata()
    asks = sorted(set(table.protocol().writer_features or ()) - _KEPT)
    asks += [key for key in metadata.configuration if key.startswith("delta.constraints.")]
    if metadata.configuration.get("delta.columnMapping.mode", "none") != "none":
        asks.append("delta.columnMapping.mode")
    for column in table.schema().fields:
        asks += [f"{key} of {column.name}" for key in column.metadata if key.startswith(_BY_WRITER)]
    return asks
