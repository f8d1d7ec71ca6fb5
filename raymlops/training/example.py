"""The example request: valid rows, and their answer before there is a trained model.

What fails for these rows would fail in a replica, after the cost of a training. ``bundle.load`` computes the answer, as
in a replica.
"""

from __future__ import annotations

import json
import warnings
from base64 import b64encode
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raymlops.bundle.load import answer
from raymlops.errors import InvalidRowsError, NonFiniteError, RecipeError
from raymlops.recipe import RecipeBase, call_recipe

if TYPE_CHECKING:
    from torch import nn

    from raymlops.arrays import Array, Column, Columns
    from raymlops.data.prepare import Prepared, SplitData
    from raymlops.signature import Signature

EXAMPLE_ROWS = 2
COMMON_ROWS = 20
"""A text that fewer rows have may be one person's."""
_SHARES = (0.5, 0.25)
_LOOKED_AT = 100
_EXACT = 2**24
"""Up to here float32 has every integer (IEEE 754: 24 bits of significand)."""


def example_rows(prepared: Prepared) -> list[dict[str, Any]]:
    """Return valid request rows as JSON: the recipe's own, or typical ones, made from validation rows of a table.

    Raises:
        RecipeError: no rows were found, or they do not match the recipe's signature.
    """
    recipe, signature = prepared.recipe, prepared.signature
    name = type(recipe).__name__
    rows: list[dict[str, Any]] | None = call_recipe(f"{name}.example()", recipe.example)
    if rows is None:
        return _typical_rows(prepared.splits["validation"], signature, name=name)
    problem = _problem(signature, rows)
    if problem is not None:
        raise RecipeError(
            f"{name}.example() returned rows that {name}.signature() rejects: {problem.message}",
            hint="Return rows that match the signature, or correct it (nullable=True where a value may be missing).",
        ) from problem
    read = signature.rows(signature.parse_rows(rows))
    return [
        {key: _as_json(value, read=typed.get(key)) for key, value in row.items()}
        for row, typed in zip(rows, read, strict=True)
    ]


def check_encode(prepared: Prepared) -> None:
    """Try the part of a request that needs no model: its rows, their columns, and ``encode``.

    Raises:
        RecipeError: names the method that fails.
    """
    columns = _columns(prepared)
    call_recipe(f"{type(prepared.recipe).__name__}.encode()", lambda: prepared.recipe.encode(columns))


def rounded_integers(prepared: Prepared) -> str:
    """Say which integers of training rows the default ``encode`` rounds; empty where it rounds none.

    Of a table in memory all rows are looked at, of a streamed one the first.
    """
    recipe, split = prepared.recipe, prepared.splits["train"]
    if type(recipe).encode is not RecipeBase.encode:
        return ""
    columns = split.columns or split.take(torch.arange(min(_LOOKED_AT, split.rows))) or {}
    for column in prepared.signature.inputs:
        values = np.asarray(columns.get(column.name, ()))
        if column.type != "int" or values.dtype.kind not in "if":  # what differs in length has no default encode
            continue
        known = values[~np.isnan(values)]
        largest = max(known.max(initial=0), -known.min(initial=0))
        if largest > _EXACT:
            return (
                f"{column.name} has integers up to {largest:.0f}, and the default encode() makes float32 of them, "
                f"which is exact up to {_EXACT:,}: different ids become equal. For ids define encode(columns) with "
                f'torch.as_tensor(columns["{column.name}"]) in it'
            )
    return ""


def check_answer(prepared: Prepared, model: nn.Module, *, device: str) -> None:
    """Answer the example as a replica does: encode, predict, decode, outputs typed by the signature, JSON rows.

    ``model`` is in evaluation mode, on ``device``, and untrained: its answer need not be finite.

    Raises:
        RecipeError: names the method that fails.
    """
    signature = prepared.signature
    with suppress(NonFiniteError):
        signature.rows(answer(prepared.recipe, model, _columns(prepared), signature=signature, device=device))


def _typical_rows(split: SplitData, signature: Signature, *, name: str) -> list[dict[str, Any]]:
    """Return rows like those of a table that are valid requests: one may hold infinity, or an unknown category."""
    columns = split.take(torch.arange(min(_LOOKED_AT, split.rows)))
    if columns is None:
        fields = ", ".join(f'"{column.name}": ...' for column in signature.inputs[:3])
        raise RecipeError(
            f"{name}.example() is needed: its splits are torch datasets, whose items are not rows",
            hint=f"Return a list with one valid request row, such as [{{{fields}}}].",
        )
    rows = signature.rows({column.name: columns[column.name] for column in signature.inputs})
    fitting = [row for row in rows if _problem(signature, [row]) is None]
    if not fitting:
        problem = _problem(signature, rows)
        raise RecipeError(
            f"none of the first {len(rows)} validation rows matches {name}.signature(): "
            f"{problem.message if problem else 'the split is empty'}",
            hint="Correct the signature, or return a matching row from example().",
        )
    columns = signature.parse_rows(fitting)
    return signature.rows({column.name: _typical(column, columns[column.name]) for column in signature.inputs})


def _typical(column: Column, values: Array) -> Array:
    """Return ``EXAMPLE_ROWS`` values that are no row's: every caller may read them.

    They are quantiles, of each element of a tensor where ``COMMON_ROWS`` rows have its shape, and else of all elements;
    texts that so many rows have, or a category; the day of a time.
    """
    if values.dtype.kind == "M":
        known = np.sort(values[~np.isnat(values)]).astype("datetime64[D]")
        chosen = [known[int(share * (len(known) - 1))] if len(known) else None for share in _SHARES]
        return np.array(chosen, dtype=values.dtype)
    if column.type in {"string", "bytes"}:
        shared = Counter(value for value in values if value is not None).most_common()
        text = "text"[: column.max_length]
        other = column.categories or (text if column.type == "string" else text.encode(),)
        common = [value for value, count in shared if count >= COMMON_ROWS] or other
        return _objects([common[index % len(common)] for index in range(EXAMPLE_ROWS)])
    ragged = values.dtype == object
    if ragged or (column.shape and len(values) < COMMON_ROWS):
        each = [np.asarray(value) for value in values]
        shape = np.median([one.shape for one in each], axis=0).astype(int)
        found = [np.full(shape, value) for value in _quantiles(column, np.concatenate([one.ravel() for one in each]))]
        return _objects([one.astype(each[0].dtype) for one in found]) if ragged else np.array(found, values.dtype)
    return _quantiles(column, values).astype(values.dtype)


def _quantiles(column: Column, values: Array) -> Array:
    numbers = values.astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of what is missing in all rows
        found: Array = np.nanquantile(numbers, _SHARES, axis=0)
    return found if column.type == "float" else np.rint(found)


def _objects(values: list[Any]) -> Array:
    array = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        array[index] = value
    return array


def _as_json(value: Any, *, read: Any) -> Any:
    """Return a value as a client writes it: bytes and times, which are valid in Python, have no form of their own."""
    if isinstance(value, bytes | bytearray):  # of an image the file itself, not what is read from it
        return b64encode(value).decode()
    try:
        json.dumps(value)
    except TypeError:
        return read
    return value


def _problem(signature: Signature, rows: Any) -> InvalidRowsError | None:
    try:
        signature.parse_rows(rows)
    except InvalidRowsError as error:
        return error
    return None


def _columns(prepared: Prepared) -> Columns:
    rows = example_rows(prepared)
    return prepared.signature.parse_rows(rows)
