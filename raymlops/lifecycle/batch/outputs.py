"""Where a batch prediction is written: a folder of files that appears whole, or one commit of a Delta table.

Owns what is checked of an output before the work, and how it is completed. Knows nothing of workers.
"""

from __future__ import annotations

import re
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from raymlops.data.tables.arrow import is_list
from raymlops.errors import RaymlopsError, UsageError
from raymlops.lifecycle.batch.files import delete_files, published, refuse_existing, write_manifest
from raymlops.storage import filesystem
from raymlops.storage.delta.commit import NewFile, TableWriter, columns_of_table
from raymlops.storage.delta.tables import find_table, has_table, table_above

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from raymlops.lifecycle.batch.record import BatchRecord

_OURS = re.compile(r"part-\d{6}-[0-9a-f]{12}\.parquet|\..*")


def output_at(text: str) -> Folder | Table:
    """Return what a path or URI names; a Delta table by ``delta+``, or because there is one.

    Raises:
        UsageError: there is something else, or a version is named, which cannot be written.
        StorageError: the storage does not answer.
    """
    name = find_table(text)
    if name is None:
        refuse_existing(text)
        _refuse_inside(text)
        return Folder(text)
    is_there = has_table(name.uri)
    if not name.whole:
        there = "" if is_there else ", which is not there"
        raise UsageError(
            f"{name} is a version or a part of a Delta table{there}", hint="Rows are added to a table: name it alone."
        )
    if not is_there:
        check_new_table(name.uri, _OURS)
    return Table(name.uri)


def check_new_table(uri: str, ours: re.Pattern[str]) -> None:
    """Reject a folder that is to become a table where a VACUUM, of it or of a table above, would remove others' files.

    Raises:
        UsageError: naming what is there.
    """
    _refuse_inside(uri)
    if others := [name for name in filesystem.entries(uri, recursive=True) if not ours.fullmatch(name)]:
        raise UsageError(
            f"{uri} is no Delta table, and holds {others[0]}: a VACUUM of the new table would remove it",
            hint="Name an empty folder, a new one, or a table.",
        )


def _refuse_inside(uri: str) -> None:
    if (table := table_above(uri)) is not None:
        raise UsageError(
            f"the output {uri} is in a folder of the Delta table {table}, whose VACUUM would remove its files",
            hint="Name another folder, or the table alone to add the rows to it.",
        )


@dataclass(frozen=True)
class Folder:
    """A folder of files; a local one appears when it is complete."""

    uri: str
    mark: str = ""
    """Ends the names of its files."""

    def kept(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns of the input that are written, with their Arrow types: as they are."""
        return dict(columns)

    def version_with(self, work: Callable[[], str], schema: Any) -> int | None:
        """Return None: what exists was refused."""
        del work, schema
        return None

    def writing(self, names: Sequence[str]) -> AbstractContextManager[str]:
        """Return a context with a folder for the files of these names, which becomes the output."""
        return published(self.uri, names)

    def complete(self, record: BatchRecord, folder: str, files: Sequence[NewFile]) -> BatchRecord:
        """Write the manifest, and return the record."""
        del files
        write_manifest(record, folder)
        return record


@dataclass
class Table:
    """A Delta table; its new files are read once they are committed."""

    uri: str
    mark: str = field(default_factory=lambda: f"-{uuid.uuid4().hex[:12]}")
    _writer: TableWriter | None = None
    _work: str = ""
    _committing: bool = False

    def kept(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns of the input that are written, in the nearest types that Delta has.

        What is null in all rows, or empty in all lists, has the table's type. A new table has it as texts, which is
        what pandas leaves without a type; a table that lacks it loses nothing without it.

        Raises:
            UsageError: Delta has none.
            StorageError: the storage does not answer.
        """
        import pyarrow as pa

        there = columns_of_table(self.uri)
        found = {}
        for name, kind in columns.items():
            known = pa.string() if there is None else there.field(name).type if name in there.names else kind
            if not pa.types.is_null(kind):
                found[name] = _delta_type(_typed(kind, known), name)
            elif known != kind:
                found[name] = known
        return found

    def version_with(self, work: Callable[[], str], schema: Any) -> int | None:
        """Return the version of the table that has this work already; None where it is to be done.

        Raises:
            UsageError: the table does not take rows of this schema.
            StorageError: the storage does not answer.
        """
        self._writer, self._work = TableWriter(self.uri, schema), work()
        return self._writer.version_with(self._work)

    @contextmanager
    def writing(self, names: Sequence[str]) -> Iterator[str]:
        """Yield the table's folder; remove the files of these names if the block raises before their commit."""
        try:
            yield self.uri
        except BaseException:
            if not self._committing:  # the commit may have been made
                with suppress(RaymlopsError):
                    delete_files(self.uri, names)
            raise

    def complete(self, record: BatchRecord, folder: str, files: Sequence[NewFile]) -> BatchRecord:
        """Commit the files, and return the record with the table's version."""
        del folder
        assert self._writer is not None
        self._committing = True
        about = {f"raymlops.{name}": str(getattr(record, name)) for name in ("name", "version", "digest", "input")}
        return replace(record, table_version=self._writer.commit(files, work=self._work, about=about))


def _typed(kind: Any, there: Any) -> Any:
    """Return a type with a table's where it has none, also within lists and structs."""
    import pyarrow as pa

    if pa.types.is_null(kind):
        return there
    if pa.types.is_struct(kind) and pa.types.is_struct(there):
        known = {field.name: field.type for field in there}
        return pa.struct([field.with_type(_typed(field.type, known.get(field.name, field.type))) for field in kind])
    if is_list(kind) and is_list(there):
        return pa.list_(kind.value_field.with_type(_typed(kind.value_type, there.value_type)))
    return kind


def _delta_type(kind: Any, column: str) -> Any:
    """Return the nearest type that Delta has, also within lists and structs.

    Raises:
        UsageError: Delta has none.
    """
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_delta_type(field.type, column)) for field in kind])
    if is_list(kind):
        return pa.list_(kind.value_field.with_type(_delta_type(kind.value_type, column)))
    if kind == pa.uint64() or pa.types.is_nested(kind) or pa.types.is_null(kind):
        raise UsageError(
            f"a Delta table has no column of {kind}, which {column!r} of the input holds",
            hint="Leave it out: --keep names the columns to keep.",
        )
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz and "UTC")
    wider = {pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64(), pa.float16(): pa.float32()}
    return {**wider, pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}.get(kind, kind)
