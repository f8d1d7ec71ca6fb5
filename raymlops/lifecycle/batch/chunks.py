"""One part of a batch prediction: some rows of a Parquet file read, asked, and written as a file of their own.

Owns how the input is cut, and what a worker does with a piece. Knows nothing of Ray, of registries or of where the
output is published.

A piece is named by its place in the input. So doing it again after a worker was lost writes the same file, and a row
that does not fit is named by its file and its number there: Ray Data's own reader (2.60) tells the file, but no row.
"""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from raymlops.errors import InvalidRowsError, RaymlopsError, RowProblem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.arrays import Column, Columns
    from raymlops.bundle.load import LoadedModel
    from raymlops.data.parquet_files import GroupReader, ParquetFiles
    from raymlops.records import ModelVersionRef

CHUNK_ROWS = 65_536
"""Rows of one output file. A larger row group is read once for each: that is cheap beside checking every value."""
VERSION_COLUMN = "model_version"


@dataclass(frozen=True)
class Chunk:
    """Rows of one row group. ``first`` is the number of the first one in its file."""

    number: int
    group: int
    """Counted over all files."""
    start: int
    """Within the row group."""
    rows: int
    first: int

    @property
    def file(self) -> str:
        """Return the name of the output file; in the order of names, rows are in the order of the input."""
        return f"part-{self.number:06d}.parquet"


@dataclass(frozen=True)
class Job:
    """What every worker is told."""

    version: ModelVersionRef
    files: ParquetFiles
    keep: dict[str, Any]
    """Columns of the input that the output has too, with their Arrow types."""
    folder: str
    batch_rows: int


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


class ChunkWorker:
    """Predicts chunks in a process of its own; the bundle is verified and loaded once, at the first."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._model: LoadedModel | None = None
        self._reader: GroupReader | None = None

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Do the chunks that a batch of Ray Data's holds; return the rows of each, and its error as a pickle."""
        names = list(Chunk.__dataclass_fields__)
        chunks = [Chunk(*map(int, values)) for values in zip(*(rows[name] for name in names), strict=True)]
        results = [self._outcome(chunk) for chunk in chunks]
        return {"rows": [chunk.rows for chunk in chunks], "error": results}

    def _outcome(self, chunk: Chunk) -> bytes:
        # As data, because an exception would come back wrapped in Ray Data's own, and be retried as if a node had died.
        try:
            self._do(chunk)
        except RaymlopsError as error:
            return pickle.dumps(error)
        return b""

    def _do(self, chunk: Chunk) -> None:
        from raymlops.bundle.load import load
        from raymlops.data.parquet_files import GroupReader

        bundle = self._job.version.bundle
        self._model = self._model or load(bundle.uri, bundle.digest)
        self._reader = self._reader or GroupReader(self._job.files)
        write_chunk(chunk, self._job, model=self._model, reader=self._reader)


def write_chunk(chunk: Chunk, job: Job, *, model: LoadedModel, reader: GroupReader) -> None:
    """Read, predict and write one chunk.

    Raises:
        InvalidRowsError: rows do not fit the signature; each problem names its row in the file, and the file.
        NonFiniteError, RecipeError: the model fails; a note names the file and the rows.
        StorageError: the input cannot be read or the output not written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from raymlops.storage import filesystem

    uri = job.files.places[chunk.group][0].uri
    inputs = [column.name for column in model.signature.inputs]
    table, _ = reader.read(chunk.group, list(dict.fromkeys([*inputs, *job.keep])))
    table = table.slice(chunk.start, chunk.rows)
    asked = {name: table.column(name).to_pylist() for name in inputs if name in table.column_names}
    parts = []
    for start in range(0, chunk.rows, job.batch_rows):
        rows = min(job.batch_rows, chunk.rows - start)
        part = {name: values[start : start + rows] for name, values in asked.items()}
        parts.append(_predict(model, part, uri=uri, first=chunk.first + start, rows=rows))
    arrays = {name: _kept(table, name, kind) for name, kind in job.keep.items()}
    for column in model.signature.outputs:
        arrays[column.name] = pa.concat_arrays([to_arrow(column, part[column.name]) for part in parts])
    arrays[VERSION_COLUMN] = pa.array([job.version.version] * chunk.rows, pa.int64())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(arrays), sink, write_page_checksum=True)
    filesystem.write_bytes(filesystem.join(job.folder, chunk.file), sink.getvalue().to_pybytes())


def to_arrow(column: Column, values: Any) -> Any:
    """Return an output column as a ``pyarrow.Array`` of the signature's type; what is missing is null."""
    import pyarrow as pa

    kind = arrow_type(column)
    if column.shape:
        return pa.array([value.tolist() for value in values], kind)
    if column.type == "int" and column.nullable:
        return pa.array([None if value != value else int(value) for value in values.tolist()], kind)  # noqa: PLR0124
    return pa.array(values, kind, from_pandas=column.nullable)


def arrow_type(column: Column) -> Any:
    """Return the ``pyarrow.DataType`` of an output column: a tensor is lists within lists."""
    import pyarrow as pa

    kinds = {"float": pa.float64(), "int": pa.int64(), "bool": pa.bool_(), "string": pa.string()}
    kind = kinds[column.type]
    for _ in column.shape:
        kind = pa.list_(kind)
    return kind


def _predict(model: LoadedModel, asked: Mapping[str, list[Any]], *, uri: str, first: int, rows: int) -> Columns:
    try:
        # Without any column there are no rows to see in the columns; each lacks every field.
        columns = model.signature.parse_columns(asked) if asked else model.signature.parse_rows([{}] * rows)
    except InvalidRowsError as error:
        raise InvalidRowsError([_in_file(problem, uri=uri, first=first) for problem in error.problems]) from error
    try:
        return model.predict(columns)
    except RaymlopsError as error:
        error.hint = f"It was asked for rows {first} to {first + rows - 1} of {uri}." + (
            f" {error.hint}" if error.hint else ""
        )
        raise


def _in_file(problem: RowProblem, *, uri: str, first: int) -> RowProblem:
    data = asdict(problem)
    if problem.row is not None:
        data["row"] = first + problem.row
    data["message"] = f"{problem.message}; in {uri}"
    return RowProblem(**data)


def _kept(table: Any, name: str, kind: Any) -> Any:
    import pyarrow as pa

    if name not in table.column_names:
        return pa.nulls(table.num_rows, kind)
    return table.column(name).cast(kind).combine_chunks()
