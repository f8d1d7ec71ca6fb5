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
from raymlops.errors import RefusedError, StorageError, UsageError
from raymlops.storage.delta.names import TableName
from raymlops.storage.delta.tables import address, errors, library, load_if_there, storage_options

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
_FORGETS = "delta.setTransactionRetentionDuration"
"""After which time a table forgets what work it has, and would take it again."""
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
    """Whether new files take the place of those of their partitions, and new columns are added to the table, which is
    that of one piece of work."""

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
            RefusedError: it is that of other work; nothing was changed.
            StorageError: the storage does not answer, or other writers were always faster.
        """
        module = library().exceptions
        for _ in range(_TRIES):
            table = self._checked()
            if self.replaces and table is not None:
                _refuse_other_work(table, self.uri, work)
            if (found := self._version_in(table, work)) is not None and self._is_done(table, files):
                return found
            with errors(self.uri):
                try:
                    return self._commit(table, files, work=work, about=about, partition=partition or {})
                except module.DeltaError:
                    newest = load_if_there(TableName(self.uri))
                    if newest is None or (table is not None and newest.version() == table.version()):
                        raise
                    # else the table was written meanwhile
        raise StorageError(
            f"the Delta table {redact(self.uri)!r} could not be written: other writers were faster {_TRIES} times",
            hint="Run it again when fewer of them write.",
        )

    def _is_done(self, table: Any, files: Sequence[NewFile]) -> bool:
        """Return whether a table that has this piece of work has these rows: a commit may be made and reported lost."""
        if not self.replaces:
            return True
        with errors(self.uri):
            there = set(table.get_add_actions().column("path").to_pylist())
        return bool(files) and all(file.path in there for file in files)

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
        if twins := _alike(self.schema):
            raise UsageError(
                f"the columns {twins} differ by case only, which no Delta table can hold",
                hint="Name them otherwise, leave one out, or write Parquet.",
            )
        for column in self.schema:
            try:
                schema_of(pa.schema([column]))
            except Exception as error:
                why = str(error).partition("\n")[0]
                raise UsageError(
                    f"the column {column.name!r} is {column.type}, which no Delta table can hold: {why}",
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
        there = columns_in(table, self.uri)
        with errors(self.uri):
            by = tuple(table.metadata().partition_columns)
        _refuse_asking(table, self.uri, replaces=self.replaces)
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


def columns_of_table(uri: str) -> Any | None:
    """Return a table's columns as a ``pyarrow.Schema``; None where there is no table yet.

    Raises:
        StorageError: the storage does not answer.
    """
    table = load_if_there(TableName(uri))
    return None if table is None else columns_in(table, uri)


def columns_in(table: Any, uri: str) -> Any:
    """Return the columns of a loaded table as a ``pyarrow.Schema``.

    Raises:
        StorageError: the storage does not answer.
    """
    import pyarrow as pa

    with errors(uri):
        return pa.schema(table.schema().to_arrow())


def load_own(uri: str, work: str) -> Any | None:
    """Return a table whose partitions this piece of work replaces; None where there is none yet.

    Raises:
        UsageError: it asks of its writers what cannot be done.
        RefusedError: other work wrote it.
        StorageError: the storage does not answer.
    """
    table = load_if_there(TableName(uri))
    if table is not None:
        _refuse_asking(table, uri, replaces=True)
        _refuse_other_work(table, uri, work)
    return table


def _refuse_other_work(table: Any, uri: str, work: str) -> None:
    with errors(uri):
        if table.transaction_version(work) is None:
            raise RefusedError(
                f"the Delta table {redact(uri)!r} is not an export of this log, or of this state's",
                hint="A day's rows take the place of others, so each log has a table of its own: name another one.",
            )


def _refuse_asking(table: Any, uri: str, *, replaces: bool) -> None:
    with errors(uri):
        asks = _asks(table, replaces=replaces)
    if asks:
        raise UsageError(
            f"the Delta table {redact(uri)!r} asks of its writers what raymlops does not do: {', '.join(asks)}",
            hint="Write to another table, and from there into this one.",
        )


def _alike(fields: Any, place: str = "") -> str:
    """Return two columns, or fields of a struct, whose names are equal but for their case; "" where there are none."""
    import pyarrow as pa

    known: dict[str, str] = {}
    for column in fields:
        name = f"{place}{column.name}"
        if (other := known.setdefault(name.lower(), name)) != name:
            return f"{other} and {name}"
        if pa.types.is_struct(column.type) and (found := _alike(column.type, f"{name}.")):
            return found
    return ""


def _asks(table: Any, *, replaces: bool) -> list[str]:
    """Return what a table asks of its writers that files alone cannot show, or that keeps it from being written."""
    metadata = table.metadata()
    asks = sorted(set(table.protocol().writer_features or ()) - _KEPT)
    asks += [key for key in metadata.configuration if key.startswith("delta.constraints.") or key == _FORGETS]
    if replaces and metadata.configuration.get("delta.appendOnly", "false").lower() == "true":
        asks.append("delta.appendOnly")
    if metadata.configuration.get("delta.columnMapping.mode", "none") != "none":
        asks.append("delta.columnMapping.mode")
    for column in table.schema().fields:
        asks += [f"{key} of {column.name}" for key in column.metadata if key.startswith(_BY_WRITER)]
    return asks
