"""Strict parsing of JSON bodies, for all protocols that use them.

Owns what makes a body invalid JSON: empty, not UTF-8, nested too deeply, a repeated key, half a surrogate pair. Knows
nothing of a body's meaning. NaN and infinity, which some writers put into JSON, are returned as floats: the check of
the values reports them.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import orjson

from raymlops.errors import InvalidRowsError, RowProblem
from raymlops.serving.json_scan import PIECE_BYTES, TOO_DEEP, UNCOUNTED_BYTES, JsonScan, most_values
from raymlops.serving.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.signature import Signature

MAX_REREAD_BYTES = 1_000_000
"""Largest body with NaN or infinity, whose second reading holds the interpreter, and so all other requests, to its end:
for about 50 ms."""
_COLON = re.compile(rb'"[ \t\r\n]*:')
_TOKEN = re.compile(rb'[{}]|"([^"\\]*+(?:\\.[^"\\]*+)*+)"[ \t\r\n]*+(:?)', re.DOTALL)
"""A brace, or a string with the colon that makes it a key. Possessive quantifiers do not backtrack, so that a string of
a million escapes costs no memory."""


def read_json(body: bytes, *, expected: str = "a JSON object", max_values: int | None = None) -> Any:
    """Return the data of a JSON body, which has at most about ``max_values`` values.

    Raises:
        Refusal: 400, the body is empty, not UTF-8, not JSON, too deep, or repeats a key; 413, it has more values.
    """
    if max_values is not None:
        _refuse_more_values(body, max_values)
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if not body.strip():
            raise Refusal(400, "empty_body", f"the body is empty; expected {expected}") from error
        data = _second_reading(body, error)
    _refuse_duplicates(body, data)
    return data


def count_keys(data: Any, *, deep: bool = False) -> int:
    """Return the number of keys of an object, of the objects in it, and of those in its lists.

    ``deep`` also counts those of objects in objects in lists: the ``parameters`` of a tensor.
    """
    if not isinstance(data, dict):
        return 0
    count = len(data)
    for value in data.values():
        if isinstance(value, dict):
            count += len(value)
        elif isinstance(value, list):
            found = [item for item in value if isinstance(item, dict)]
            count += sum(map(len, found))
            if deep:
                count += sum(len(inner) for item in found for inner in item.values() if isinstance(inner, dict))
    return count


def invalid(problems: Sequence[RowProblem]) -> Refusal:
    """Return the refusal of invalid data, with its problems by row and field."""
    return Refusal(422, "invalid_rows", str(InvalidRowsError(tuple(problems))), problems=problems)


def wrong(field: str | None, message: str) -> Refusal:
    """Return the refusal of data with one problem that concerns no row."""
    return invalid([RowProblem(None, field, message)])


def object_of(data: Any, *, known: Sequence[str], required: Sequence[str] = (), where: str = "") -> dict[str, Any]:
    """Return data that is an object with only known keys.

    Raises:
        Refusal: 422, naming the unknown or missing keys.
    """
    if isinstance(data, dict) and data.keys() <= set(known) and data.keys() >= set(required):
        return data
    prefix = f"{where}: " if where else ""
    names = ", ".join(f'"{key}"' for key in known)
    if not isinstance(data, dict):
        raise invalid([RowProblem(None, None, f"{prefix}expected an object with the keys {names}")])
    unknown = sorted(data.keys() - set(known))[:20]
    if unknown:
        raise invalid([RowProblem(None, key[:80], f"{prefix}unknown key; known: {names}") for key in unknown])
    raise invalid([RowProblem(None, key, f"{prefix}is missing") for key in required if key not in data])


def value_limit(body: bytes, signature: Signature, *, max_rows: int) -> int | None:
    """Return how many values a body may have; None where they need not be counted."""
    return None if len(body) <= UNCOUNTED_BYTES else most_values(signature.values_per_row, max_rows=max_rows)


def _refuse_more_values(body: bytes, most: int) -> None:
    """Refuse a body with more values before it is parsed, and a text without an end."""
    if body.count(b",") <= most:
        return
    scan = JsonScan(most)
    for start in range(0, len(body), PIECE_BYTES):
        scan.add(body[start : start + PIECE_BYTES])
    if scan.within_text:
        raise Refusal(400, "not_json", "the body is not JSON: it ends within a text")


def _second_reading(body: bytes, error: orjson.JSONDecodeError) -> Any:
    """Return data that orjson rejects only for NaN and infinities; raise for all other reasons."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as bad:
        raise Refusal(400, "not_utf8", f"the body is not UTF-8: byte {bad.start} cannot be decoded") from bad
    if "depth" in str(error):
        raise TOO_DEEP from error
    not_json = Refusal(400, "not_json", f"the body is not JSON: {error}")
    if not ("NaN" in text or "Infinity" in text or "infinity" in str(error)):
        raise not_json from error
    if len(body) > MAX_REREAD_BYTES:
        large = f"NaN and infinity are not JSON, and accepted up to {MAX_REREAD_BYTES} bytes only; send null"
        raise Refusal(400, "not_json", large) from error
    try:
        data = json.loads(text)  # reads NaN, Infinity and 1e999 as floats
    except (ValueError, RecursionError):
        raise not_json from error
    if not _holds_non_finite(data) or _holds_half_a_character(text, data):
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


def _holds_half_a_character(text: str, data: Any) -> bool:
    """Return whether a text or key has half a surrogate pair, which json accepts and orjson does not."""
    if "\\u" not in text:
        return False
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _refuse_duplicates(body: bytes, data: Any) -> None:
    """Refuse a repeated key, of which orjson keeps the last.

    Each key has one colon after its quotation mark. If there are as many of those as keys were kept, none was lost.
    Only a body with more (a text such as ":x", or keys that ``count_keys`` does not reach) is scanned token by
    token. Each name is looked up in a set: comparing it with all others would take hours for the largest bodies. In
    Python, since the standard library would hold the interpreter, and so the event loop, until it has read the
    whole body.
    """
    colons = body.count(b":")
    if colons <= (len(data) if isinstance(data, dict) else 0):
        return
    if colons <= (kept := count_keys(data)):
        return
    keys = len(_COLON.findall(body))
    if keys <= kept or keys <= count_keys(data, deep=True):
        return
    inside: list[set[str]] = []
    for token in _TOKEN.finditer(body):
        text, colon = token.groups()
        if colon:
            name = json.loads(b'"%s"' % text) if b"\\" in text else text.decode()
            if name in inside[-1]:
                raise Refusal(400, "duplicate_key", f"the key {name[:80]!r} is given twice in one object")
            inside[-1].add(name)
        elif text is None and token[0] == b"{":
            inside.append(set())
        elif text is None:
            inside.pop()
