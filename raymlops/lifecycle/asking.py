"""Ask an endpoint for the rows of a file.

Knows how JSON, CSV and Parquet become request rows by the endpoint's own signature. Needs no ray or torch.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.errors import UsageError
from raymlops.signature import Signature

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROWS_PER_REQUEST = 1000


@dataclass(frozen=True)
class Answers:
    """The outputs of every row in order, the version that gave them, and the id of each request."""

    outputs: list[dict[str, Any]]
    model_version: str
    request_ids: list[str]
    curl: str
    """A command that asks for the first row alone."""


def ask_file(url: str, file: Path, *, timeout_s: float = 30.0) -> Answers:
    """Send every row of a file to ``url`` (``.../models/NAME/predict``), in requests of at most 1,000 rows.

    A ``.json`` file holds a list of rows or ``{"rows": [...]}``; the columns of a ``.csv`` or ``.parquet`` file that
    the model does not know (a label, an index) are left out.

    Raises:
        UsageError: the file is missing, of another kind, or cannot be read.
        InvalidRowsError: a row does not fit the signature.
        NotFoundError, ClusterError: there is no such model, or nobody answers.
    """
    from raymlops.serving.client import describe, predict

    readers: dict[str, Callable[[Path, Signature], list[dict[str, Any]]]] = {
        ".json": _json_rows,
        ".csv": _csv_rows,
        ".parquet": _parquet_rows,
    }
    if file.suffix not in readers:
        raise UsageError(f"{file}: a file of rows ends in {', '.join(readers)}")
    if not file.is_file():
        raise UsageError(f"{file}: no such file")
    signature = Signature.from_dict(describe(url.removesuffix("/predict"), timeout_s=timeout_s)["signature"])
    try:
        rows = readers[file.suffix](file, signature)
    except (ValueError, OSError) as error:
        raise UsageError(f"{file}: cannot be read: {error}") from error
    outputs: list[dict[str, Any]] = []
    versions: list[str] = []
    requests: list[str] = []
    # An empty file is asked as it is, so that the endpoint's own answer says what is wrong.
    for start in range(0, max(1, len(rows)), ROWS_PER_REQUEST):
        result = predict(url, rows[start : start + ROWS_PER_REQUEST], timeout_s=timeout_s)
        outputs += result.outputs
        versions.append(result.model_version)
        requests.append(result.request_id)
    return Answers(outputs=outputs, model_version=versions[-1], request_ids=requests, curl=curl_line(url, rows[:1]))


def curl_line(url: str, rows: list[dict[str, Any]]) -> str:
    """Return a shell command that asks ``url`` for these rows."""
    body = json.dumps({"rows": rows})
    return f"curl -s {shlex.quote(url)} -H 'content-type: application/json' -d {shlex.quote(body)}"


def _json_rows(file: Path, _signature: Signature) -> list[dict[str, Any]]:
    data = json.loads(file.read_text(encoding="utf-8"))
    rows = data.get("rows") if isinstance(data, dict) else data
    if not isinstance(rows, list):
        raise ValueError('expected a list of rows or {"rows": [...]}')
    return rows


def _csv_rows(file: Path, signature: Signature) -> list[dict[str, Any]]:
    import pandas as pd

    kinds = {"string": str, "float": float, "int": "Int64", "bool": bool}
    columns = {column.name: kinds[column.type] for column in signature.inputs if not column.shape}
    # Only an empty cell is missing: "NA" is a country, and a carrier.
    frame = pd.read_csv(file, dtype=columns, keep_default_na=False, na_values=[""])
    return _known_rows(frame, signature)


def _parquet_rows(file: Path, signature: Signature) -> list[dict[str, Any]]:
    import pandas as pd

    return _known_rows(pd.read_parquet(file), signature)


def _known_rows(frame: Any, signature: Signature) -> list[dict[str, Any]]:
    known = [column.name for column in signature.inputs if column.name in frame.columns]
    return signature.rows({name: frame[name].to_numpy(dtype=object) for name in known})
