"""List Parquet files by their footers, check that they are unchanged, and read one row group at a time.

Owns the list that is sent to workers, and the errors of a file. Knows nothing of recipes, batches or memory, and needs
no torch.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.data.columns import table_columns
from raymlops.data.parquet.reading import columns_of, open_parquet, parquet_format, rows_of
from raymlops.data.parquet.table_rows import as_dataset, completed, folder_columns
from raymlops.errors import NotFoundError, RecipeError, StorageError
from raymlops.storage.delta.snapshot import Snapshot, read_snapshot
from raymlops.storage.delta.tables import find_table
from raymlops.storage.filesystem import info, open_filesystem
from raymlops.storage.locate import RESUME, find_files, refuse_secret, unreadable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from raymlops.storage.delta.names import TableName

_FOOTERS_AT_A_TIME = 16
_OPEN_FILES = 8
_TEXT_BYTES, _NUMBER_BYTES = 64, 8
_BLOCKS, _BLOCK_BYTES = 1024, 1 << 16
"""Of ``digest``: a digest that is made otherwise needs another version of fingerprints."""
_VACUUM = (
    "VACUUM removes files of earlier versions; the table's property delta.deletedFileRetentionDuration says after what "
    "time."
)


@dataclass(frozen=True)
class DataFile:
    """A file when it was listed. ``group_rows`` are the rows of each of its row groups."""

    uri: str
    size: int
    mtime_ns: int | None
    group_rows: tuple[int, ...]
    partition: tuple[tuple[str, str | None], ...] = ()
    """Columns that the file does not hold, each with the value of all its rows as text: by the log of a Delta table, or
    by the names of folders."""


@dataclass(frozen=True)
class ParquetFiles:
    """Files whose rows are numbered in this order."""

    files: tuple[DataFile, ...]
    memory_bytes: int = 0
    """Bounds the decoded size of all columns."""
    rows_digest: str = ""
    """Of files that raymlops wrote: identifies their rows, however they are stored."""
    table: Snapshot | None = None
    """The version of a Delta table that they are."""

    @cached_property
    def group_rows(self) -> npt.NDArray[np.int64]:
        """Return the rows of each row group, of all files in order."""
        return np.array([rows for file in self.files for rows in file.group_rows], dtype=np.int64)

    @property
    def rows(self) -> int:
        """Return the rows of all files."""
        return int(self.group_rows.sum())

    @cached_property
    def places(self) -> list[tuple[DataFile, int]]:
        """Return each row group's file and number in it, in the same order."""
        return [(file, number) for file in self.files for number in range(len(file.group_rows))]

    @cached_property
    def folder_columns(self) -> Any:
        """Return the columns that names of folders hold, beside those of the files, as a ``pyarrow.Schema``."""
        return folder_columns([] if self.table is not None else [dict(file.partition) for file in self.files])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        files = [
            {**asdict(file), "group_rows": list(file.group_rows), "partition": [list(each) for each in file.partition]}
            for file in self.files
        ]
        found = {"files": files, "memory_bytes": self.memory_bytes, "rows_digest": self.rows_digest}
        return found if self.table is None else {**found, "table": asdict(self.table)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ParquetFiles:
        """Rebuild a list from ``to_dict``."""
        files = tuple(
            DataFile(
                str(file["uri"]),
                int(file["size"]),
                file["mtime_ns"],
                tuple(file["group_rows"]),
                tuple((name, value) for name, value in file.get("partition", ())),
            )
            for file in data["files"]
        )
        table = Snapshot(**data["table"]) if data.get("table") else None
        return cls(files, int(data["memory_bytes"]), str(data.get("rows_digest", "")), table)

    def dataset(self) -> Any:
        """Return the files as a ``pyarrow.dataset.Dataset``."""
        import pyarrow as pa
        import pyarrow.dataset as ds

        files = [file for file in self.files if file.group_rows]
        places = [open_filesystem(file.uri) for file in files]
        partitions = [dict(file.partition) for file in files]
        if self.table is not None:
            return as_dataset(places, partitions, self.table.columns)
        schema = columns_of(open_parquet(files[0].uri))
        if self.folder_columns:
            return as_dataset(places, partitions, pa.unify_schemas([schema, self.folder_columns]))
        paths = [path for _, path in places]
        return ds.dataset(paths, schema=schema, filesystem=places[0][0], format=parquet_format())

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Return all rows as a table's columns. The files may be copies of the listed ones, of the same size.

        Raises:
            RecipeError: the files do not fit together, or a column has a type that no request could bring.
            StorageError: a file is gone, damaged, or no longer what was listed.
        """
        import pyarrow as pa

        reader = GroupReader(self, copies=True)
        tables = [reader.read(group)[0] for group in range(len(self.places))]
        try:
            return table_columns(pa.concat_tables(tables, promote_options="permissive"))
        except pa.ArrowException as error:
            uri = self.files[0].uri
            raise RecipeError(f"the files beside {uri} hold columns of different types: {error}") from error

    @property
    def is_read_whole(self) -> bool:
        """Return whether ``digest`` reads all of the files."""
        return sum(file.size for file in self.files) <= _BLOCKS * _BLOCK_BYTES

    def digest(self) -> str:
        """Return a SHA-256 of every file's size and footer, and of blocks of their content at fixed places.

        1,024 blocks of 64 KiB are evenly spread over all files; smaller data is read whole. Footers hold the sizes of
        all column chunks and mostly their extremes. Copies have one digest, whatever their names. The values of
        partitions count too, and of a Delta table its columns.

        Raises:
            StorageError: a file is gone, damaged, or no longer what was listed.
        """
        offsets = [places.tolist() for places in block_offsets([file.size for file in self.files])]
        with ThreadPoolExecutor(_FOOTERS_AT_A_TIME) as pool:
            found = sha256(b"".join(pool.map(self._content_digest, self.files, offsets)))
        partitions = [file.partition for file in self.files]
        if self.table is not None:
            found.update(json.dumps([self.table.schema, *partitions]).encode())
        elif any(partitions):
            found.update(json.dumps(partitions).encode())
        return found.hexdigest()

    def verify(self) -> None:
        """Check the size and modification time of every file, without reading any.

        Raises:
            StorageError: a file is gone or was changed.
        """
        with ThreadPoolExecutor(_FOOTERS_AT_A_TIME) as pool:
            list(pool.map(self.refuse_changed, self.files))

    def refuse_changed(self, file: DataFile, *, copy: bool = False) -> None:
        """Compare a file with what was listed.

        Raises:
            StorageError: it is gone or was changed.
        """
        try:
            found = info(file.uri)
        except StorageError as error:
            raise unreadable(file.uri, error.__cause__ or error) from error
        if not found.is_file:
            raise self.changed(file, "it does not exist")
        if found.size != file.size:
            raise self.changed(file, f"it has {found.size} bytes, not {file.size}")
        if not copy and file.mtime_ns is not None and found.mtime_ns is not None and found.mtime_ns != file.mtime_ns:
            raise self.changed(file, "it was modified since")

    def changed(self, file: DataFile, what: str) -> StorageError:
        """Return the error for a file that is no longer what was listed."""
        if self.table is not None:
            return StorageError(
                f"{file.uri}, of {self.table}, changed since the run was prepared: {what}",
                hint=f"{_VACUUM} Restore the file, or train anew. {RESUME}",
            )
        return StorageError(
            f"{file.uri} changed since the run was prepared: {what}",
            hint=f"Every process must read the same files, unchanged during a run: restore it. {RESUME}",
        )

    def _content_digest(self, file: DataFile, offsets: Sequence[int]) -> bytes:
        """Return the digest of a file's size, its footer and the blocks at ``offsets``."""
        import pyarrow as pa

        self.refuse_changed(file)
        found = sha256(f"{file.size}:".encode())
        filesystem, path = open_filesystem(file.uri)
        try:
            with filesystem.open_input_file(path) as opened:
                footer_bytes = int.from_bytes(opened.read_at(4, file.size - 8), "little")  # "PAR1" ends the file
                footer = (file.size - 8 - footer_bytes, footer_bytes)
                for offset, size in [footer, *((at, _BLOCK_BYTES) for at in offsets)]:
                    block = opened.read_at(min(size, file.size - offset), offset)
                    if len(block) < min(size, file.size - offset):
                        raise self.changed(file, "it was truncated")
                    found.update(block)
        except (OSError, pa.ArrowException) as error:
            raise unreadable(file.uri, error) from error
        return found.digest()


def is_parquet(source: Any) -> bool:
    """Return whether a split names Parquet files: a path, a URI, or a list of them."""
    if isinstance(source, list | tuple):
        return bool(source) and all(isinstance(item, str | Path) for item in source)
    return isinstance(source, str | Path)


def list_parquet(source: str | Path | Sequence[str | Path], *, versions: dict[str, int] | None = None) -> ParquetFiles:
    """Find the files of a path, folder, glob or URI, or of a list of them, and read their footers.

    A Delta table's are those of the version that is named, or else of that in ``versions``, by the table's URI, or else
    of the newest, which is put there: who passes it for several sources reads all of them at one version.

    Files of a folder or glob are sorted by path, those of a list keep its order. Names that start with ``_`` or ``.``
    are skipped. Folders ``column=value`` below the one that is named, or below the first wildcard, are a column where
    the file holds none of that name.

    Raises:
        RecipeError: no file matches, a URI holds a secret, or a list holds a Delta table.
        UsageError: there is no such version of a Delta table, it cannot be read, or a file of one is named.
        NotFoundError: files of that version were removed.
        StorageError: a file is damaged or not a Parquet file, or the storage is unavailable.
    """
    items = [str(item) for item in ([source] if isinstance(source, str | Path) else source)]
    with ThreadPoolExecutor(_FOOTERS_AT_A_TIME) as pool:
        tables = [name for name in pool.map(_table_of, items) if name is not None]
    if tables and len(items) == 1:
        return _list_table(tables[0], {} if versions is None else versions)
    if tables:
        raise RecipeError(
            f"datasets() names the Delta table {tables[0]} in a list of {len(items)}",
            hint="Name it alone; several tables become one where they are written.",
        )
    with ThreadPoolExecutor(_FOOTERS_AT_A_TIME) as pool:
        found = [file for files in pool.map(find_files, items) for file in files]
        read = list(pool.map(lambda file: _with_footer(file.uri, file.info, file.partition), found))
    return ParquetFiles(tuple(file for file, _ in read), sum(size for _, size in read))


def _table_of(text: str) -> TableName | None:
    refuse_secret(text)
    try:
        return find_table(text)
    except StorageError as error:
        raise unreadable(text, error.__cause__ or error) from error


def _list_table(name: TableName, versions: dict[str, int]) -> ParquetFiles:
    if name.version is None and name.at is None and name.uri in versions:
        name = name.with_version(versions[name.uri])
    table, files = read_snapshot(name)
    versions.setdefault(table.uri, table.version)
    with ThreadPoolExecutor(_FOOTERS_AT_A_TIME) as pool:
        infos = list(pool.map(lambda file: info(file.uri), files))
        if gone := [file.uri for file, found in zip(files, infos, strict=True) if not found.is_file]:
            raise NotFoundError(
                f"{table} is no longer complete: {len(gone)} of its {len(files)} files are gone, such as {gone[0]}",
                hint=f"{_VACUUM} Name a later version, or none for the newest.",
            )
        read = list(pool.map(lambda file, found: _with_footer(file.uri, found), files, infos))
    listed = (replace(found, partition=file.partition) for file, (found, _) in zip(files, read, strict=True))
    return ParquetFiles(tuple(listed), sum(size for _, size in read), table=table)


def block_offsets(
    sizes: Sequence[int], *, blocks: int = _BLOCKS, block_bytes: int = _BLOCK_BYTES
) -> list[npt.NDArray[np.int64]]:
    """Return where the blocks that are read of files of these sizes begin, for each file.

    They are evenly spread over all files as if these were one, where a block ends with its file; all of it is covered
    where blocks suffice, one more for each file.
    """
    starts = np.cumsum([0, *sizes])
    if starts[-1] <= blocks * block_bytes:
        return [np.arange(0, size, block_bytes) for size in sizes]
    places = np.linspace(0, starts[-1] - block_bytes, blocks, dtype=np.int64)
    owners = np.searchsorted(starts[1:], places, side="right")
    return [places[owners == number] - starts[number] for number in range(len(sizes))]


class GroupReader:
    """Reads row groups. Keeps a few files open, because a footer may be long.

    Each process must read the files that were listed, or with ``copies`` copies of the same size.
    """

    def __init__(self, files: ParquetFiles, *, copies: bool = False) -> None:
        self._files = files
        self._places = files.places
        self._copies = copies
        self._file = lru_cache(_OPEN_FILES)(self._opened_as_listed)

    def place(self, group: int) -> str:
        """Return a row group's file and number for error messages."""
        file, number = self._places[group]
        return f"row group {number} of {file.uri}"

    def read(self, group: int, columns: Sequence[str] | None = None) -> tuple[Any, list[str]]:
        """Return a row group as a ``pyarrow.Table`` of those ``columns`` that it has, and the names of all it has.

        Without ``columns`` the table has all.

        Raises:
            StorageError: the file is gone, damaged, or no longer what was listed.
        """
        import pyarrow as pa

        file, number = self._places[group]
        self._files.refuse_changed(file, copy=self._copies)
        try:
            opened = self._file(file)
            names = opened.schema_arrow.names
            chosen = None if columns is None else [name for name in columns if name in names]
            table = rows_of(opened, number, chosen)
        except (OSError, pa.ArrowException) as error:
            self._file.cache_clear()
            raise unreadable(self.place(group), error) from error
        if table.num_rows != file.group_rows[number]:
            raise self._files.changed(
                file, f"row group {number} has {table.num_rows} rows, not {file.group_rows[number]}"
            )
        partition = dict(file.partition)
        if (snapshot := self._files.table) is None:
            folders = [self._files.folder_columns.field(name) for name in partition]
            rows = completed(table, pa.schema([*table.schema, *folders]), partition, columns) if folders else table
            return rows, [*names, *partition]
        try:
            return completed(table, snapshot.columns, partition, columns), snapshot.columns.names
        except pa.ArrowException as error:
            raise StorageError(f"{self.place(group)} does not have the columns of {snapshot}: {error}") from error

    def _opened_as_listed(self, file: DataFile) -> Any:
        opened = open_parquet(file.uri)
        rows = tuple(opened.metadata.row_group(index).num_rows for index in range(opened.metadata.num_row_groups))
        if rows != file.group_rows:
            raise self._files.changed(file, f"it has row groups of {list(rows)} rows, not {list(file.group_rows)}")
        return opened


def _with_footer(uri: str, info: Any, folders: Sequence[tuple[str, str | None]] = ()) -> tuple[DataFile, int]:
    """Return the file, with those of its folders' columns that it does not hold, and the decoded size of its own."""
    import pyarrow as pa

    try:
        opened = open_parquet(uri)
        metadata = opened.metadata
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        schema = opened.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise unreadable(uri, error) from error
    partition = tuple((name, value) for name, value in folders if name not in schema.names)
    # Dictionary-encoded values grow when they are decoded, to at least this.
    row_bytes = sum(_NUMBER_BYTES if pa.types.is_primitive(field.type) else _TEXT_BYTES for field in schema)
    row_bytes += _TEXT_BYTES * len(partition)
    rows = tuple(group.num_rows for group in groups)
    memory = sum(group.total_byte_size for group in groups) + sum(rows) * row_bytes
    return DataFile(uri, info.size, info.mtime_ns, rows, partition), memory
