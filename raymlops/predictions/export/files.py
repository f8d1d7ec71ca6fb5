"""Export predictions as JSON lines, CSV or one Parquet file.

A row of JSON nests ``features`` and ``output``; in CSV each of their fields is a column. NaN and infinity become null
in JSON.
"""

from __future__ import annotations

import csv
import io
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from raymlops.errors import StorageError, UsageError
from raymlops.predictions.read import LABEL
from raymlops.predictions.schema import FEATURES, OUTPUT
from raymlops.storage.filesystem import create

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.predictions.read import Reading

FORMS = (".jsonl", ".csv", ".parquet")


def json_rows(batch: pa.RecordBatch) -> Iterator[bytes]:
    """Yield each row as one JSON object."""
    for row in batch.to_pylist():
        if row.get(LABEL) is not None:
            row[LABEL] = orjson.Fragment(row[LABEL])
        yield orjson.dumps(row, option=orjson.OPT_UTC_Z)


def check_form(path: str) -> str:
    """Return a file name's suffix, which selects the format.

    Raises:
        UsageError: no such format can be written.
    """
    ending = Path(path).suffix.lower()
    if ending not in FORMS:
        raise UsageError(f"{path!r} has no suffix of a known format", hint=f"Write {', '.join(FORMS)}.")
    return ending


def write_file(reading: Reading, path: str) -> None:
    """Write all rows to a file of its owner alone, which appears once it is complete.

    CSV and Parquet have one set of columns for all versions: fields that a version lacks are empty.

    Raises:
        UsageError: the suffix is unknown, or two versions have a field of one name and two types.
        StorageError: the file cannot be written, or the predictions cannot be read.
    """
    ending = check_form(path)
    if not Path(path).absolute().parent.is_dir():
        raise StorageError(f"{path!r} cannot be written: its folder does not exist", hint="Create the folder first.")
    with create(Path(path), mode=0o600) as file:
        if ending == ".jsonl":
            file.writelines(row + b"\n" for batch in reading for row in json_rows(batch))
        elif ending == ".csv":
            _write_csv(reading, file)
        else:
            _write_parquet(reading, file)


def union(schemas: Iterator[pa.Schema]) -> pa.Schema:
    """Return one schema for rows of all these.

    Raises:
        UsageError: a field is of two types.
    """
    fields: dict[str, pa.DataType] = {}
    for schema in schemas:
        for field in schema:
            fields[field.name] = _wider(fields.get(field.name), field.type, where=field.name)
    last = [name for name in (FEATURES, OUTPUT, LABEL) if name in fields]
    return pa.schema([(name, fields[name]) for name in (*(name for name in fields if name not in last), *last)])


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return the rows with the columns and fields of a schema, null where they are missing."""
    columns = {name: batch[name] for name in batch.schema.names}
    arrays = [_fitted(columns.get(field.name), field.type, rows=batch.num_rows) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _wider(known: pa.DataType | None, new: pa.DataType, *, where: str) -> pa.DataType:
    if known is None or known == new:
        return new
    if not (pa.types.is_struct(known) and pa.types.is_struct(new)):
        raise UsageError(
            f"{where} is {known} for one version and {new} for another",
            hint="Choose one with --version, or write .jsonl.",
        )
    fields = {field.name: field.type for field in known}
    for field in new:
        fields[field.name] = _wider(fields.get(field.name), field.type, where=f"{where}.{field.name}")
    return pa.struct(list(fields.items()))


def _fitted(array: pa.Array | None, kind: pa.DataType, *, rows: int) -> pa.Array:
    if array is None:
        return pa.nulls(rows, kind)
    if array.type == kind:
        return array
    parts = dict(zip((field.name for field in array.type), array.flatten(), strict=True))
    fitted = [_fitted(parts.get(field.name), field.type, rows=rows) for field in kind]
    return pa.StructArray.from_arrays(fitted, fields=list(kind))


def _write_parquet(reading: Reading, file: IO[bytes]) -> None:
    schema = union(reading.schemas())
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in reading:
            writer.write_batch(conform(batch, schema))


def _write_csv(reading: Reading, file: IO[bytes]) -> None:
    schema = union(reading.schemas())
    names = [name for field in schema for name in _leaves(field)]
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    rows = csv.DictWriter(text, names, extrasaction="ignore")
    rows.writeheader()
    for batch in reading:
        rows.writerows(_flat(row) for row in batch.to_pylist())
    text.detach()


def _leaves(field: pa.Field) -> list[str]:
    return [f"{field.name}.{inner.name}" for inner in field.type] if pa.types.is_struct(field.type) else [field.name]


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for name, value in row.items():
        inner = {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
        for key, item in inner.items():
            as_json = isinstance(item, list | bool | datetime)
            cells[key] = orjson.dumps(item, option=orjson.OPT_UTC_Z).decode().strip('"') if as_json else item
    return cells
