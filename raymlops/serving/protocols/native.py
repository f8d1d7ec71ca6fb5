"""The native protocol: ``{"rows": [{field: value, ...}, ...]}`` in, ``{"outputs": [...], ...}`` out.

Owns that format. The signature checks the values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from raymlops.arrays import whole_values
from raymlops.errors import InvalidRowsError, RowProblem
from raymlops.serving.protocols.base import Encoded, Parsed, Responder
from raymlops.serving.protocols.json_body import invalid, read_json, value_limit
from raymlops.serving.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.arrays import Columns
    from raymlops.signature import Signature


class Native:
    """The native protocol."""

    name = "native"

    def parse(self, body: bytes, headers: Mapping[bytes, bytes], *, signature: Signature, max_rows: int) -> Parsed:  # noqa: ARG002
        """Return a request's columns.

        Raises:
            Refusal: 400 for invalid JSON, 413 for too many rows, 422 for rows that do not fit.
        """
        data = read_json(body, expected='{"rows": [{...}]}', max_values=value_limit(body, signature, max_rows=max_rows))
        if not isinstance(data, dict):
            raise invalid([RowProblem(None, None, 'expected an object with the key "rows"')])
        if len(data) > 1 or "rows" not in data:
            unknown = sorted(data.keys() - {"rows"})[:20]
            problems = [RowProblem(None, key[:80], 'unknown key; the only key is "rows"') for key in unknown]
            if "rows" not in data:
                problems.append(RowProblem(None, "rows", "is missing; expected a list of objects, one per row"))
            raise invalid(problems)
        rows = data["rows"]
        if isinstance(rows, list) and len(rows) > max_rows:
            raise too_many_rows(len(rows), max_rows)
        try:
            return Parsed(signature.parse_rows(rows), len(rows))
        except InvalidRowsError as error:
            raise invalid(error.problems) from error

    def encode(self, outputs: Columns, parsed: Parsed, responder: Responder, *, signature: Signature) -> Encoded:  # noqa: ARG002
        """Return one output per row."""
        data = {
            "outputs": output_rows(outputs, signature),
            "model": responder.name,
            "model_version": responder.version,
            "request_id": responder.request_id,
        }
        return Encoded(orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY))


PROTOCOL = Native()


def too_many_rows(rows: int, max_rows: int) -> Refusal:
    """Return the refusal of more rows than one request may have."""
    return Refusal(413, "too_many_rows", f"got {rows} rows; at most {max_rows} in one request")


def output_rows(outputs: Columns, signature: Signature) -> list[dict[str, Any]]:
    """Return rows for orjson: NaN becomes null, arrays become lists, floats that stand for ints or truth values these.

    Bytes and images become base64, times ISO 8601.
    """
    names, lists = [], []
    for column in signature.outputs:
        array = outputs[column.name]
        values = whole_values(column, array) if column.info.write is None else column.info.write(array)
        names.append(column.name)
        lists.append(values)
    if len(names) == 1:
        return [{names[0]: value} for value in lists[0]]
    return [dict(zip(names, values, strict=True)) for values in zip(*lists, strict=True)]
