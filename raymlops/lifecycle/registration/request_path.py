"""Run a version on the path of a request: rows parsed, encoded, predicted, decoded, typed, and written as JSON.

Metrics do not cover ``predict`` and ``decode``, so that a version with broken answers can have good ones. Owns the
choice of rows and the report about those that are not answered.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from raymlops.errors import InvalidRowsError
from raymlops.records import GateCheck

if TYPE_CHECKING:
    from raymlops.bundle.load import LoadedModel
    from raymlops.data.prepare import SplitData

ROWS = 256
"""Validation rows to predict, spread evenly: enough to contain rare categories and missing values."""
NAME = "answers requests"


def rows_of(candidate: LoadedModel, split: SplitData | None) -> list[dict[str, Any]]:
    """Return the bundle's example rows, and rows of a split in the form of a request; only tables have such rows."""
    columns = None if split is None else split.sample(about_rows=ROWS)
    if columns is None:
        return candidate.example
    inputs = [column.name for column in candidate.signature.inputs]
    return [*candidate.example, *candidate.signature.rows({name: columns[name][:ROWS] for name in inputs})]


def answers_requests(candidate: LoadedModel, rows: list[dict[str, Any]], *, batch_size: int) -> GateCheck:
    """Predict these rows, and return whether a version answers them as its signature says.

    Rows that the recipe rejects count as answered, unless it rejects most of them.
    """
    answered = 0
    try:
        for start in range(0, len(rows), batch_size):
            answers = asked(candidate, rows[start : start + batch_size])
            json.dumps(answers, allow_nan=False)
            answered += sum(answer is not None for answer in answers)
    except Exception as error:  # whatever it is, a caller would get it
        return _check(None, rows, detail=f"{type(error).__name__}: {error}")
    rejected = len(rows) - answered
    return _check(answered, rows, detail=f"the recipe rejects {rejected} of them" if rejected else "")


def asked(candidate: LoadedModel, rows: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """Return the answer to each row as JSON values, None where the recipe rejects it."""
    try:
        return [*candidate.predict_rows(rows)]
    except InvalidRowsError:
        if len(rows) == 1:
            return [None]
    middle = len(rows) // 2
    return [*asked(candidate, rows[:middle]), *asked(candidate, rows[middle:])]


def _check(answered: int | None, rows: list[dict[str, Any]], *, detail: str) -> GateCheck:
    return GateCheck(
        name=NAME,
        passed=answered is not None and 2 * answered > len(rows),
        got=None if answered is None else float(answered),
        allowed=f"{len(rows)} rows answered as the signature says",
        detail=detail,
    )
