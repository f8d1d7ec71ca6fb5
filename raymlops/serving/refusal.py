"""Error responses and per-request limits.

Owns the one error of all protocols. Pure: knows nothing of Serve, models or sockets. Nothing that a client sends may
raise anything but ``Refusal``.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.errors import RowProblem


class Refusal(Exception):  # noqa: N818 - an answer, not an error of ours
    """A request that is answered with a status 4xx or 5xx."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        problems: Sequence[RowProblem] = (),
        allow: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.problems = tuple(problems)
        self.allow = allow
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        options = {"problems": self.problems, "allow": self.allow, "retry_after_s": self.retry_after_s}
        return _rebuild, (self.status, self.code, self.message, options)


INTERNAL = Refusal(500, "internal", "the endpoint itself failed; the replica's log has it")
"""The answer to a request on which our own code raised."""


def _rebuild(status: int, code: str, message: str, options: dict[str, Any]) -> Refusal:
    return Refusal(status, code, message, **options)


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one request; they may change while a replica runs."""

    max_rows: int = 5000
    max_body_bytes: int = 8_000_000
    timeout_s: float = 30.0
    max_batch_rows: int = 1024
    max_batch_elements: int = 2**18
    max_waiting_rows: int = 20_000
    max_ongoing_requests: int = 64


_OK, _CANCELLED, _INVALID, _LATE, _NOT_FOUND, _DENIED, _EXHAUSTED = 0, 1, 3, 4, 5, 7, 8
_PRECONDITION, _UNIMPLEMENTED, _INTERNAL, _UNAVAILABLE, _UNAUTHENTICATED = 9, 12, 13, 14, 16
_GRPC_CODES = {
    401: _UNAUTHENTICATED,
    403: _DENIED,
    404: _NOT_FOUND,
    405: _UNIMPLEMENTED,
    408: _LATE,
    409: _PRECONDITION,
    413: _EXHAUSTED,
    429: _EXHAUSTED,
    499: _CANCELLED,
    501: _UNIMPLEMENTED,
    503: _UNAVAILABLE,
    504: _LATE,
}
_OIP_PATH = re.compile(r"(/models/[^/]+)?/v2(/|$)")


def error_body(refusal: Refusal, request_id: str, *, path: str = "") -> bytes:
    """Return the JSON of an error response, for every protocol; never raises.

    ``path`` is the request's: below ``/v2`` the error is a text, as clients of the Open Inference Protocol expect, with
    the same facts beside it.
    """
    problems = [asdict(problem) for problem in refusal.problems]
    field = next((problem["field"] for problem in problems if problem["field"]), None)
    error = {"code": refusal.code, "message": refusal.message, "field": field, "problems": problems}
    flat = {"error": refusal.message, **error} if _OIP_PATH.match(path) else {"error": error}
    data = {**flat, "request_id": request_id}
    try:
        return orjson.dumps(data)
    except TypeError:  # a text with half a surrogate pair, or a value that JSON cannot hold
        return json.dumps(data, default=str, ensure_ascii=False).encode("utf-8", "replace")


def refusal_headers(refusal: Refusal) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers of an error response."""
    headers = []
    if refusal.allow:
        headers.append((b"allow", refusal.allow.encode()))
    if refusal.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(refusal.retry_after_s))).encode()))
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return tuple(headers)


def grpc_code(status: int) -> int:
    """Return the gRPC status code of an HTTP status."""
    if status < 400:
        return _OK
    return _GRPC_CODES.get(status, _INVALID if status < 500 else _INTERNAL)
