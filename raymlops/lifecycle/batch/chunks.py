"""One chunk of a batch prediction: rows of a Parquet file, read, predicted and written as one output file.

Owns how the input is cut into chunks, and what a worker does with one. Ray Data schedules chunks (``predict``), and
does not read or write the rows: ``ray.data.read_parquet`` (2.60) can name a block's file but no row of it, it cuts and
coalesces blocks by their size in memory, and ``write_parquet`` names a file by the task that wrote it. A chunk is named
by its place in the input instead. So a retry after a lost worker writes the same file, the output has the input's
order, and an invalid row is reported with its file and number.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from raymlops.errors import InvalidRowsError, RaymlopsError, UsageError
from raymlops.lifecycle.batch.inputs import parsed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.arrays import Columns
    from raymlops.bundle.load import LoadedModel
    from raymlops.data.parquet.files import GroupReader, ParquetFiles
    from raymlops.errors import RowProblem
    from raymlops.records import ModelVersionRef
    from raymlops.signature import Signature

CHUNK_ROWS = 65_536
"""Rows of one output file. A larger row group is read once for each, which is cheap beside validating every value."""
VERSION_COLUMN = "model_version"


@dataclass(frozen=True)
class Chunk:
    """Rows of one row group. ``first`` is the number of the first row in its file."""

    number: int
    group: int
    """Its index among the row groups of all files."""
    start: int
    """The first row within the row group."""
    rows: int
    first: int


@dataclass(frozen=True)
class Job:
    """The arguments of every worker."""

    version: ModelVersionRef
    files: ParquetFiles
    keep: dict[str, Any]
    """Columns of the input to keep in the output, with their Arrow types."""
    folder: str
    batch_rows: int
    mark: str = ""
    """Ends the names of this attempt's files, where those of others may lie beside them."""

    def file(self, chunk: Chunk) -> str:
        """Return the name of a chunk's output file; sorted names have the order of the input."""
        return f"part-{chunk.number:06d}{self.mark}.parquet"


def plan(files: ParquetFiles, *, chunk_rows: int = CHUNK_ROWS) -> list[Chunk]:
    """Cut files into chunks of at most ``chunk_rows`` rows, none of which spans two row groups."""
    chunks: list[Chunk] = []
    group = 0
    for file in files.files:
        befores = accumulate(file.group_rows, initial=0)
        for rows, before in zip(file.group_rows, befores, strict=False):
            chunks += [
                Chunk(len(chunks) + index, group, start, min(chunk_rows, rows - start), before + start)
                for index, start in enumerate(range(0, rows, chunk_rows))
            ]
            group += 1
    return chunks


def output_schema(signature: Signature, kept: Mapping[str, Any]) -> Any:
    """Return the columns of every output file, as a ``pyarrow.Schema``."""
    import pyarrow as pa

    from raymlops.predictions.schema import column_array

    outputs = {column.name: column_array(column, [], rows=0).type for column in signature.outputs}
    return pa.schema([*kept.items(), *outputs.items(), (VERSION_COLUMN, pa.int64())])


def work_of(version: ModelVersionRef, files: ParquetFiles, kept: Mapping[str, Any]) -> str:
    """Return what identifies the rows of the output: those of the input, the version, and the columns to keep.

    Of files that are too large for their digest to read all of them, when they were written counts too: rows that were
    corrected in place are other rows, and so are copies.
    """
    written = [] if files.is_read_whole else [file.mtime_ns for file in files.files]
    known = [version.name, version.version, version.bundle.digest, files.digest(), sorted(kept), *written]
    text = json.dumps(known)
    return f"raymlops.predict.{sha256(text.encode()).hexdigest()[:32]}"


class ChunkWorker:
    """Predicts chunks in its own process; the bundle is verified and loaded once, at the first chunk."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._model: LoadedModel | None = None
        self._reader: GroupReader | None = None

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Predict the one chunk of a Ray Data batch; return its rows, its file's size, and its error as a pickle."""
        chunk = Chunk(**{name: int(values[0]) for name, values in rows.items()})
        size, error = self._predict(chunk)
        return {"number": [chunk.number], "rows": [chunk.rows], "bytes": [size], "error": [error]}

    def _predict(self, chunk: Chunk) -> tuple[int, bytes]:
        from raymlops.bundle.load import load
        from raymlops.data.parquet.files import GroupReader

        bundle = self._job.version.bundle
        # Errors are data: Ray Data would wrap an exception, and retry it as if a node had died.
        try:
            self._model = self._model or load(bundle.uri, bundle.digest)
            self._reader = self._reader or GroupReader(self._job.files)
            return write_chunk(chunk, self._job, model=self._model, reader=self._reader), b""
        except RaymlopsError as error:
            return 0, pickle.dumps(error)


def write_chunk(chunk: Chunk, job: Job, *, model: LoadedModel, reader: GroupReader) -> int:
    """Read, predict and write one chunk; return the size of its file in bytes.

    Raises:
        InvalidRowsError: rows do not match the signature; each problem names its row and file.
        NonFiniteError, RecipeError: the model fails; a note names the file and the rows.
        StorageError: the input cannot be read or the output not written.
        UsageError: a column that is kept cannot become what the output has.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from raymlops.predictions.schema import column_array
    from raymlops.storage import filesystem

    uri = job.files.places[chunk.group][0].uri
    inputs = [column.name for column in model.signature.inputs]
    table, _ = reader.read(chunk.group, list(dict.fromkeys([*inputs, *job.keep])))
    table = table.slice(chunk.start, chunk.rows)
    parts = [
        _predict(model, table.slice(start, job.batch_rows), uri=uri, first=chunk.first + start)
        for start in range(0, chunk.rows, job.batch_rows)
    ]
    arrays = {name: _kept(table, name, kind, uri=uri) for name, kind in job.keep.items()}
    arrays |= {column.name: column_array(column, parts, rows=chunk.rows) for column in model.signature.outputs}
    arrays[VERSION_COLUMN] = pa.array([job.version.version] * chunk.rows, pa.int64())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(arrays), sink, write_page_checksum=True)
    data = sink.getvalue().to_pybytes()
    filesystem.write_bytes(filesystem.join(job.folder, job.file(chunk)), data)
    return len(data)


def _predict(model: LoadedModel, rows: Any, *, uri: str, first: int) -> Columns:
    try:
        columns = parsed(rows, model.signature)
    except InvalidRowsError as error:
        raise InvalidRowsError([_in_file(problem, uri=uri, first=first) for problem in error.problems]) from error
    try:
        return model.predict(columns)
    except RaymlopsError as error:
        error.hint = f"It failed on rows {first} to {first + rows.num_rows - 1} of {uri}." + (
            f" {error.hint}" if error.hint else ""
        )
        raise


def _in_file(problem: RowProblem, *, uri: str, first: int) -> RowProblem:
    row = None if problem.row is None else first + problem.row
    return replace(problem, row=row, message=f"{problem.message}; in {uri}")


def _kept(table: Any, name: str, kind: Any, *, uri: str) -> Any:
    """Return a column of the input as the output has it; nanoseconds, which no Delta table has, are cut off.

    Raises:
        UsageError: it cannot become that.
    """
    import pyarrow as pa

    if name not in table.column_names:
        return pa.nulls(table.num_rows, kind)
    column = table.column(name)
    try:
        return column.cast(kind, safe=not _has_times(kind)).combine_chunks()
    except pa.ArrowException as error:
        raise UsageError(
            f"column {name!r} of {uri} is {column.type}, and cannot be written as {kind}: {error}",
            hint="Leave it out: --keep names the columns to keep.",
        ) from error


def _has_times(kind: Any) -> bool:
    """Return whether a type is of times, or has them within."""
    import pyarrow as pa

    return pa.types.is_timestamp(kind) or any(_has_times(kind.field(at).type) for at in range(kind.num_fields))
