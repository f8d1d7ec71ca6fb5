"""The requests that a replica answered lately: who asked, and how many rows each had. What feedback is checked by.

Owns how many are kept. What is not here may have been answered by another replica or long ago, and no look into the log
is fast enough to tell it from what was never asked: such labels are accepted, their senders are told which they are,
and they are matched when the log is read. Use from one event loop.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from raymlops.errors import InvalidRowsError, RowProblem
from raymlops.predictions.labels import MAX_PROBLEMS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.predictions.labels import Label
    from raymlops.serving.request import Exchange

MOST = 20_000
"""About 6 MB, with ids of 36 characters."""


class Answered:
    """Who asked for which rows, by request id."""

    def __init__(self, *, most: int = MOST) -> None:
        self._most = most
        self._requests: dict[str, tuple[str | None, int]] = {}

    def add(self, exchange: Exchange) -> None:
        """Keep an answered request. An id that several callers chose is nobody's, with the rows of the longest."""
        caller, rows = exchange.caller, exchange.rows
        if (known := self._requests.pop(exchange.request_id, None)) is not None:
            caller, rows = caller if known[0] == caller else None, max(known[1], rows)
        elif len(self._requests) >= self._most:
            del self._requests[next(iter(self._requests))]
        self._requests[exchange.request_id] = caller, rows

    def check(self, labels: Sequence[Label], *, caller: str | None) -> list[int]:
        """Reject labels of other callers' requests and of rows that do not exist; return which are of none known here.

        ``caller`` None may label everybody's requests.

        Raises:
            InvalidRowsError: with place and field of the first problems found (at most 20).
        """
        found = [self._requests.get(label.request_id) for label in labels]
        problems = (
            RowProblem(index, *problem)
            for index, (label, request) in enumerate(zip(labels, found, strict=True))
            if request is not None and (problem := _problem(label, *request, caller=caller)) is not None
        )
        if first := list(islice(problems, MAX_PROBLEMS)):
            raise InvalidRowsError(first)
        return [index for index, request in enumerate(found) if request is None]


def _problem(label: Label, asked: str | None, rows: int, *, caller: str | None) -> tuple[str, str] | None:
    if None not in {asked, caller} and asked != caller:
        return "request_id", "another caller's key asked for this; send labels with the key that asked"
    if label.row >= rows:
        return "row", f"the request had {rows} {'row' if rows == 1 else 'rows'}, counted from 0"
    return None
