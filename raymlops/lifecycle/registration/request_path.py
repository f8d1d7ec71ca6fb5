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

    Rows that the recipe rejects count as answered, unless it rejects all of them.
    """
    answered = 0
    try:
        for start in range(0, len(rows), batch_size):
            answered += _answered(candidate, rows[start : start + batch_size])
    except Exception as error:  # whatever it is, a caller would get it
        return _check(None, rows, detail=f"{type(error).__name__}: {error}")
    return _check(answered, rows, detail="" if answered else "the recipe rejects every one of them")


def _answered(candidate: LoadedModel, rows: list[dict[str, Any]]) -> int:
    try:
        json.dumps(candidate.predict_rows(rows), allow_nan=False)
    except InvalidRowsError:
        if len(rows) == 1:
            return 0
        return sum(_answered(candidate, [row]) for row in rows)  # as requests of their own
    return len(rows)


def _check(answered: int | None, rows: list[dict[str, Any]], *, detail: str) -> GateCheck:
    return GateCheck(
        name=NAME,
        passed=bool(answered),
        got=None if answered is None else float(answered),
        allowed=f"{len(rows)} rows answered as the signature says",
        detail=detail,
    )
