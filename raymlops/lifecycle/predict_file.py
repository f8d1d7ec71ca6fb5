"""Request predictions for the rows of a file.

Knows how JSON, CSV and Parquet become request rows by the endpoint's own signature. Needs no ray or torch.
"""

from __future__ import annotations

import csv
import json
import math
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.errors import UsageError
from raymlops.serving.client.calls import plain
from raymlops.serving.client.client import KEY
from raymlops.signature import Signature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from raymlops.serving.client.client import Client

ROWS_PER_REQUEST = 1000


@dataclass(frozen=True)
class Answers:
    """The outputs of every row in order, and who gave them."""

    outputs: list[dict[str, Any]]
    model_versions: list[str]
    """Each version that answered, in the order of its first answer: several when another took the route meanwhile."""
    request_ids: list[str]
    curl: str
    """A command that requests the first row."""


def ask_file(client: Client, name: str, file: Path, *, version: int | str | None = None) -> Answers:
    """Request predictions for every row of a file, in requests of at most 1,000 rows.

    A ``.json`` file holds a list of rows or ``{"rows": [...]}``; columns of a ``.csv`` or ``.parquet`` file that
    are not inputs of the model (a label, an index) are left out. All rows are checked before the first is sent.
    ``version`` requests one of the live versions.

    Raises:
        UsageError: the file is missing, of another kind, or cannot be read.
        InvalidRowsError: rows do not fit the signature; each problem names its row in the file and its field.
        NotFoundError, RefusedError, ClusterError: there is no such model, a key is missing, or no answer arrives.
    """
    readers: dict[str, Callable[[Path, Signature], list[dict[str, Any]]]] = {
        ".json": _json_rows,
        ".csv": _csv_rows,
        ".parquet": _parquet_rows,
    }
    if file.suffix not in readers:
        raise UsageError(f"{file}: a file of rows ends in {', '.join(readers)}")
    if not file.is_file():
        raise UsageError(f"{file}: no such file")
    model = client.describe(name)
    signature = Signature.from_dict(model["signature"])
    try:
        rows = readers[file.suffix](file, signature)
    except (ValueError, OSError, RecursionError, csv.Error) as error:
        raise UsageError(f"{file}: cannot be read: {error}") from error
    if rows:
        signature.parse_rows(rows)
    most = min(ROWS_PER_REQUEST, model.get("limits", {}).get("max_rows", ROWS_PER_REQUEST))
    # An empty file is sent as it is, so that the endpoint's own answer says what is wrong.
    parts = [rows[start : start + most] for start in range(0, len(rows), most)] or [[]]
    results = [client.predict(name, part, version=version) for part in parts]
    return Answers(
        outputs=[row for result in results for row in result.outputs],
        model_versions=list(dict.fromkeys(result.model_version for result in results)),
        request_ids=[result.request_id for result in results],
        curl=curl_line(client, name, rows[:1], version=version),
    )


def curl_line(client: Client, name: str, rows: list[dict[str, Any]], *, version: int | str | None = None) -> str:
    """Return a shell command that requests these rows; a key is named by its variable."""
    body = json.dumps({"rows": rows}, default=plain)
    key = f' -H "authorization: Bearer ${KEY}"' if client.with_key else ""
    pin = "" if version is None else f" -H {shlex.quote(f'x-raymlops-version: {version}')}"
    return (
        f"curl -s {shlex.quote(client.predict_url(name))} -H 'content-type: application/json'{key}{pin} "
        f"-d {shlex.quote(body)}"
    )


def _json_rows(file: Path, _signature: Signature) -> list[dict[str, Any]]:
    data = json.loads(file.read_text(encoding="utf-8"), parse_int=_integer)
    rows = data.get("rows") if isinstance(data, dict) else data
    if not isinstance(rows, list):
        raise ValueError('expected a list of rows or {"rows": [...]}')
    # JSON can spell half of a surrogate pair, which no UTF-8 body can carry.
    json.dumps(rows, ensure_ascii=False).encode("utf-8")
    return rows


def _integer(text: str) -> int | float:
    """Return a number; one beyond 64 bits, which a request cannot carry, as the float that a float column takes."""
    value = int(text)
    return value if -(2**63) <= value < 2**63 else float(text)


def _csv_rows(file: Path, signature: Signature) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as stream:  # spreadsheets begin a file with a byte order mark
        reader = csv.DictReader(stream)
        types = _types(signature, reader.fieldnames or ())
        rows = []
        for row in reader:
            if None in row:
                raise ValueError(f"line {reader.line_num} has more cells than the header")
            rows.append({name: _from_text(row[name], kind) for name, kind in types.items()})
        return rows


def _parquet_rows(file: Path, signature: Signature) -> list[dict[str, Any]]:
    from raymlops.data.parquet.reading import open_parquet

    table = open_parquet(str(file)).read()
    types = _types(signature, table.column_names)
    rows: list[dict[str, Any]] = table.select(list(types)).to_pylist()
    return [{name: _plain(value, types[name]) for name, value in row.items()} for row in rows]


def _types(signature: Signature, names: Iterable[str]) -> Mapping[str, str]:
    """Return the types of the columns that both the model and the file have."""
    there = set(names)
    types = {column.name: column.type for column in signature.inputs if column.name in there}
    if not types:
        wanted = ", ".join(column.name for column in signature.inputs)
        raise ValueError(f"it has none of the model's columns: {wanted}")
    return types


def _from_text(text: str | None, kind: str) -> Any:
    """Return a cell's value; text that is not of the kind stays text, which the signature refuses by row and field."""
    if not text:
        return None  # only an empty cell is missing: "NA" is a country, and a carrier
    try:
        if kind == "bool":
            return {"true": True, "false": False}.get(text.lower(), text)
        if kind == "int":
            return int(text)
        return float(text) if kind == "float" else text
    except ValueError:
        return _plain(_from_text(text, "float"), "int") if kind == "int" else text


def _plain(value: Any, kind: str) -> Any:
    """Return a value as JSON has it: a column of whole numbers with gaps was often stored as floats with NaN."""
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if kind == "int" and value.is_integer():
            return int(value)
    return value
