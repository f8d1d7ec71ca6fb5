"""MLflow's scoring protocol: ``POST /invocations`` in each of its formats, without MLflow.

Owns the formats that its server 3.17 reads: ``dataframe_split``, ``dataframe_records``, ``instances`` and ``inputs`` in
JSON, and CSV with a header line. A pandas client writes a missing number as NaN. So here, as in ``mlflow.pyfunc``, NaN
is missing in a nullable column. Everything else is as strict as in the other protocols. Parameters are accepted and, as
by our pyfunc model, ignored.
"""

from __future__ import annotations

import csv
import io
import math
import re
from codecs import BOM_UTF8
from itertools import islice
from typing import TYPE_CHECKING, Any

import orjson

from raymlops.errors import InvalidRowsError, RowProblem
from raymlops.serving.csv_scan import refuse_more
from raymlops.serving.protocols.base import Encoded, Parsed
from raymlops.serving.protocols.json_body import invalid, object_of, read_json, value_limit, wrong
from raymlops.serving.protocols.native import output_rows, too_many_rows
from raymlops.serving.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.arrays import Column, Columns
    from raymlops.serving.protocols.base import Responder
    from raymlops.signature import Signature

FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
KINDS = ("application/json", "text/csv")

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_LINE_END = re.compile(rb"[\r\n]")
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_MISSING = ("", "nan", "NaN")
_MORE_NAMES = 20
"""Of a header line that has more than there are columns, so many are read to say which are wrong."""


class Mlflow:
    """MLflow's scoring protocol."""

    name = "mlflow"

    def parse(self, body: bytes, headers: Mapping[bytes, bytes], *, signature: Signature, max_rows: int) -> Parsed:
        """Return a request's columns.

        Raises:
            Refusal: 415 for another content type, 400 for invalid JSON or CSV, 413 for too many rows, 422 for rows
                that do not fit.
        """
        kind = _kind(headers)
        given = _from_csv(body, signature, max_rows) if kind == "text/csv" else _from_json(body, signature, max_rows)
        rows = max(map(len, given.values()), default=0) if isinstance(given, dict) else len(given)
        if rows > max_rows:
            raise too_many_rows(rows, max_rows)
        try:
            if isinstance(given, list):
                return Parsed(signature.parse_rows(_tolerant(given, signature)), rows)
            if not rows:
                raise wrong(None, "expected at least one row, got none")
            return Parsed(signature.parse_columns(given), rows)
        except InvalidRowsError as error:
            raise invalid(error.problems) from error

    def encode(self, outputs: Columns, parsed: Parsed, responder: Responder, *, signature: Signature) -> Encoded:  # noqa: ARG002
        """Return one record per row, as MLflow's server does for a DataFrame; missing values are null, not its NaN."""
        rows = output_rows(outputs, signature)
        return Encoded(orjson.dumps({"predictions": rows}, option=orjson.OPT_SERIALIZE_NUMPY))


PROTOCOL = Mlflow()


def _kind(headers: Mapping[bytes, bytes]) -> str:
    given = headers.get(b"content-type", b"application/json").decode("latin-1")
    kind, *parameters = (part.strip().lower() for part in given.split(";"))
    charsets = [
        value.strip().strip('"') for part in parameters for key, _, value in [part.partition("=")] if key == "charset"
    ]
    if kind not in {"", *KINDS} or any(charset not in {"utf-8", "utf8"} for charset in charsets):
        raise Refusal(415, "unsupported_type", f"expected {' or '.join(KINDS)} in UTF-8, got {given[:80]!r}")
    return kind


def _from_json(body: bytes, signature: Signature, max_rows: int) -> dict[str, list[Any]] | list[Any]:
    """Return columns by name, or rows."""
    data = object_of(
        read_json(body, max_values=value_limit(body, signature, max_rows=max_rows)), known=(*FORMS, "params")
    )
    forms = [form for form in FORMS if form in data]
    if len(forms) != 1:
        raise wrong(None, f"expected one of the keys {', '.join(FORMS)}, got {', '.join(forms) or 'none'}")
    if not isinstance(data.get("params"), dict | None):
        raise wrong("params", "expected an object")
    form = forms[0]
    given = data[form]
    if form == "dataframe_split":
        return _from_split(given)
    if isinstance(given, list) and (form == "dataframe_records" or dict in set(map(type, given))):
        return given
    if form == "inputs" and isinstance(given, dict):
        if given and not any(isinstance(value, list) for value in given.values()):
            return [given]
        short = [name for name, value in given.items() if not isinstance(value, list)]
        if short:
            raise wrong(short[0][:80], "expected a list of values, one per row")
        return given
    if isinstance(given, list) and form != "dataframe_records" and len(signature.inputs) == 1:
        return {signature.inputs[0].name: given}
    names = ", ".join(column.name for column in signature.inputs)
    raise wrong(form, f"expected values by name; the names are {names}")


def _from_split(given: Any) -> dict[str, list[Any]]:
    split = object_of(given, known=("columns", "data", "index"), required=("columns", "data"), where="dataframe_split")
    columns, data = split["columns"], split["data"]
    if not isinstance(columns, list) or set(map(type, columns)) != {str}:
        raise wrong("columns", "expected a list of names")
    if len(set(columns)) < len(columns):
        raise wrong("columns", "a name is given twice")
    if not isinstance(data, list) or set(map(type, data)) - {list}:
        raise wrong("data", "expected a list of rows, each a list of values")
    if not isinstance(split.get("index", []), list):
        raise wrong("index", "expected a list of labels, one per row")
    width = len(columns)
    if set(map(len, data)) - {width}:
        row = next(index for index, values in enumerate(data) if len(values) != width)
        raise invalid([RowProblem(row, None, f"expected {width} values, one per column, got {len(data[row])}")])
    return dict(zip(columns, map(list, zip(*data, strict=True)), strict=True)) if data else {}


def _from_csv(body: bytes, signature: Signature, max_rows: int) -> dict[str, list[Any]]:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refusal(400, "not_utf8", f"the body is not UTF-8: byte {error.start} cannot be decoded") from error
    if not text.strip():
        raise Refusal(400, "empty_body", "the body is empty; expected a header line and a line per row")
    tensors = [column.name for column in signature.inputs if column.sent_shape]
    if tensors:
        raise wrong(tensors[0], "CSV cannot hold tensors; send JSON")
    _refuse_long_header(body, signature)
    refuse_more(body, value_limit(body, signature, max_rows=max_rows))
    try:
        lines = (line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line)
        names, *data = islice(lines, max_rows + 2)  # one more than is allowed is refused, however many follow
    except csv.Error as error:
        raise Refusal(400, "not_csv", f"the body is not CSV: {error}") from error
    if len(set(names)) < len(names):
        raise wrong("columns", "a name is given twice")
    columns = {column.name: column for column in signature.inputs}
    unknown = [name for name in names if name not in columns][:20]
    if unknown:
        known = ", ".join(sorted(columns))
        raise invalid([RowProblem(None, name[:80], f"unknown field; known: {known}") for name in unknown])
    for row, values in enumerate(data):
        if len(values) != len(names):
            raise invalid([RowProblem(row, None, f"expected {len(names)} values, one per column, got {len(values)}")])
    cells = zip(*data, strict=True) if data else [()] * len(names)
    return {name: [_cell(columns[name], text) for text in values] for name, values in zip(names, cells, strict=True)}


def _refuse_long_header(body: bytes, signature: Signature) -> None:
    """Refuse a header line with far more fields than there are columns before it is parsed, which would take long."""
    most = len(signature.inputs) + _MORE_NAMES
    line = _LINE_END.split(body.removeprefix(BOM_UTF8).lstrip(b"\r\n"), maxsplit=1)[0]
    try:
        refuse_more(line, most - 1)
    except Refusal as error:
        long = f"the header line has more than {most} fields; there are {len(signature.inputs)} columns"
        raise wrong("columns", long) from error


def _cell(column: Column, text: str) -> Any:
    """Return the value of a CSV cell; one that does not fit its column stays a text, which is then refused."""
    if column.info.is_text:
        return text or None
    if text in _MISSING:
        return None
    if column.type == "bool":
        return _BOOLS.get(text, text)
    if not _NUMBER.fullmatch(text) or len(text) > 400:
        return text
    return int(text) if column.type == "int" and text.lstrip("+-").isdigit() else float(text)


def _tolerant(rows: list[Any], signature: Signature) -> list[Any]:
    """Return records with NaN replaced by null, as pandas writes it."""
    nullable = {column.name for column in signature.inputs if column.nullable}
    return [_record(row, nullable) if isinstance(row, dict) else row for row in rows]


def _record(row: dict[str, Any], nullable: set[str]) -> dict[str, Any]:
    missing = [name for name, value in row.items() if type(value) is float and math.isnan(value) and name in nullable]
    return {**row, **dict.fromkeys(missing)} if missing else row
