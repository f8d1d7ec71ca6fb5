"""What is refused, and within which limits requests are answered.

Owns the one error that every protocol answers with. Pure: knows nothing of Serve, models or sockets. Nothing that a
client sends may raise anything but ``Refusal``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.errors import RowProblem


class Refusal(Exception):  # noqa: N818 - an answer, not an error of ours
    """A request that is answered with a status of 4xx or 5xx."""

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


def _rebuild(status: int, code: str, message: str, options: dict[str, Any]) -> Refusal:
    return Refusal(status, code, message, **options)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for; can change while a replica runs."""

    max_rows: int = 5000
    max_body_bytes: int = 8_000_000
    timeout_s: float = 30.0
    max_batch_rows: int = 1024
    max_waiting_rows: int = 20_000


def error_body(refusal: Refusal, request_id: str) -> bytes:
    """Return the JSON that answers a refused request, in every protocol."""
    problems = [asdict(problem) for problem in refusal.problems]
    field = next((problem["field"] for problem in problems if problem["field"]), None)
    error = {"code": refusal.code, "message": refusal.message, "field": field, "problems": problems}
    return orjson.dumps({"error": error, "request_id": request_id})
