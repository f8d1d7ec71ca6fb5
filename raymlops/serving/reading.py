"""From the bytes of a request to typed columns, and what is wrong with them.

Owns every reason to refuse a body, each with its HTTP status and code. Pure: knows nothing of Serve,
models or sockets. Nothing that a client sends may raise anything but ``Refusal``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from raymlops.errors import InvalidRowsError, RowProblem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.signature import Columns, Signature


class Refusal(Exception):  # noqa: N818 - an answer, not an error of ours
    """A request that is answered with a status of 4xx or 5xx."""

    def __init__(
        self, status: int, code: str, message: str, *, problems: Sequence[RowProblem] = (), allow: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.problems = tuple(problems)
        self.allow = allow


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for; can change while a replica runs."""

    max_rows: int = 5000
    max_body_bytes: int = 8_000_000
    timeout_s: float = 30.0
    max_batch_rows: int = 1024
    threads: int = 1


def parse_body(body: bytes, signature: Signature, *, max_rows: int) -> tuple[Columns, int]:
    """Return a request's input columns and their number of rows.

    The body is ``{"rows": [{field: value, ...}, ...]}``, checked by ``Signature.parse_rows``.

    Raises:
        Refusal: 400 for what is no JSON, 413 for too many rows, 422 for rows that do not fit.
    """
    if not body.strip():
        raise Refusal(400, "empty_body", 'the body is empty; expected {"rows": [{...}]}')
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        data = _second_reading(body, error)
    if not isinstance(data, dict):
        raise _invalid([RowProblem(None, None, 'expected an object with the key "rows"')])
    unknown = sorted(data.keys() - {"rows"})
    if unknown:
        raise _invalid([RowProblem(None, key, 'unknown key; the only one is "rows"') for key in unknown[:20]])
    if "rows" not in data:
        raise _invalid([RowProblem(None, "rows", "is missing; expected a list of objects, one a row")])
    rows = data["rows"]
    if isinstance(rows, list) and len(rows) > max_rows:
        raise Refusal(413, "too_many_rows", f"got {len(rows)} rows; at most {max_rows} in one request")
    _refuse_duplicates(body, rows)
    try:
        return signature.parse_rows(rows), len(rows)
    except InvalidRowsError as error:
        raise _invalid(error.problems) from error


def _invalid(problems: Sequence[RowProblem]) -> Refusal:
    return Refusal(422, "invalid_rows", str(InvalidRowsError(tuple(problems))), problems=problems)


def _second_reading(body: bytes, error: orjson.JSONDecodeError) -> Any:
    """Say why orjson refused: not UTF-8, too deep, a NaN or an infinity (which names its row and field), or no JSON."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as bad:
        raise Refusal(400, "not_utf8", f"the body is not UTF-8: byte {bad.start} cannot be decoded") from bad
    if "depth" in str(error):
        raise Refusal(400, "too_deep", "the body is nested too deeply") from error
    not_json = Refusal(400, "not_json", f"the body is not JSON: {error}")
    if not ("NaN" in text or "Infinity" in text or "infinity" in str(error)):
        raise not_json from error
    try:
        data = json.loads(text)  # reads NaN, Infinity and 1e999 as floats, which parse_rows then refuses by name
    except (ValueError, RecursionError):
        raise not_json from error
    if not _holds_non_finite(data):
        raise not_json from error
    return data


def _holds_non_finite(data: Any) -> bool:
    try:
        json.dumps(data, allow_nan=False)
    except ValueError:
        return True
    except RecursionError:
        return False
    return False


def _refuse_duplicates(body: bytes, rows: Any) -> None:
    """Refuse a field given twice, of which orjson keeps the last.

    Each key has one colon, so as many colons as keys were kept proves that none was lost; only a body with more (a
    time of day in a string, say) is read again by the standard library, which shows every pair.
    """
    if not isinstance(rows, list):
        return
    kept = 1 + sum(len(row) for row in rows if isinstance(row, dict))
    if body.count(b":") <= kept:
        return
    try:
        json.loads(body, object_pairs_hook=_without_duplicates)
    except RecursionError as error:
        raise Refusal(400, "too_deep", "the body is nested too deeply") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Refusal(400, "duplicate_key", f"the key {twice[:80]!r} is given twice in one object")
    return data
