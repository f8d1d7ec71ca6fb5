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
from raymlops.predictions.read import COLUMNS, LABEL
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
    """Write all rows to a file, which appears once it is complete.

    CSV and Parquet have one set of columns for all versions: fields that a version lacks are empty.

    Raises:
        UsageError: the suffix is unknown, or two versions have a field of one name and two types.
        StorageError: the file cannot be written, or the predictions cannot be read.
    """
    ending = check_form(path)
    if not Path(path).absolute().parent.is_dir():
        raise StorageError(f"{path!r} cannot be written: its folder does not exist", hint="Create the folder first.")
    with create(Path(path)) as file:
        if ending == ".jsonl":
            file.writelines(row + b"\n" for batch in reading for row in json_rows(batch))
        elif ending == ".csv":
            _write_csv(reading, file)
        else:
            _write_parquet(reading, file)


def _common_schema(reading: Reading) -> pa.Schema:
    """Return one schema for the rows of all versions.

    Raises:
        UsageError: a field is of two types.
    """
    try:
        schema = pa.unify_schemas([pa.schema([]), *reading.schemas()], promote_options="permissive")
    except pa.ArrowTypeError as error:
        raise UsageError(
            f"two versions have a field of one name and two types: {error}",
            hint="Choose one with --version, or write .jsonl.",
        ) from error
    return pa.schema([schema.field(name) for name in (*COLUMNS, LABEL) if name in schema.names])


def _write_parquet(reading: Reading, file: IO[bytes]) -> None:
    schema = _common_schema(reading)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in reading:
            tables = [schema.empty_table(), pa.Table.from_batches([batch])]
            writer.write_table(pa.concat_tables(tables, promote_options="permissive"))


def _write_csv(reading: Reading, file: IO[bytes]) -> None:
    names = _common_schema(reading).empty_table().flatten().column_names
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    rows = csv.DictWriter(text, names)
    rows.writeheader()
    for batch in reading:
        flat = pa.Table.from_batches([batch]).flatten().to_pylist()
        rows.writerows({name: _cell(value) for name, value in row.items()} for row in flat)
    text.detach()


def _cell(value: Any) -> Any:
    if isinstance(value, list | bool | datetime):
        return orjson.dumps(value, option=orjson.OPT_UTC_Z).decode().strip('"')
    return value
