"""A table's columns held against a signature: each as the array that a request would bring, or why it cannot be.

Owns the comparison. Knows nothing of files, batches or torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.errors import RecipeError
from raymlops.recipe import RecipeBase, signature_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from raymlops.signature import Column

    Array = npt.NDArray[Any]


def needed(recipe: RecipeBase) -> list[str]:
    """Return the names of the columns that training reads: the signature's inputs and the label."""
    return [column.name for column in signature_of(recipe).inputs] + ([recipe.label] if recipe.label else [])


def conform(columns: Mapping[str, Array], recipe: RecipeBase, *, place: str) -> dict[str, Array]:
    """Give each input column the array type that a request would give it. ``place`` names the table in errors.

    Raises:
        RecipeError: an input or the label is missing, or an input is not what the signature says.
    """
    name = type(recipe).__name__
    missing = [column for column in needed(recipe) if column not in columns]
    if missing:
        raise RecipeError(
            f"{name}.datasets(): {place} lacks {', '.join(map(repr, missing))}; it has {', '.join(columns) or 'none'}",
            hint="A table holds the signature's inputs and the label.",
        )
    conformed = dict(columns)
    for column in signature_of(recipe).inputs:
        array, message = _as_column(column, columns[column.name])
        if message:
            raise RecipeError(
                f"{name}: column {column.name!r} of the signature is {_described(column)}, but in {place} it {message}",
                hint="A request brings what the signature says: change the signature, or the table in datasets().",
            )
        conformed[column.name] = array
    return conformed


def _as_column(column: Column, array: Array) -> tuple[Array, str]:
    if None in column.shape:
        if array.ndim == 1 and array.dtype != object:
            return array, f"holds single values of {array.dtype}"
        ragged = np.empty(len(array), dtype=object)
        ragged[:] = list(array)
        return ragged, ""
    kinds = {"float": "fi", "int": "if" if column.nullable else "i", "bool": "b", "string": "O"}[column.type]
    if array.dtype.kind not in kinds or (column.type == "string" and not _is_text(array)):
        return array, f"holds {'arrays' if array.dtype == object else array.dtype}"
    if array.shape[1:] != column.shape:
        return array, f"has values of shape {array.shape[1:]}"
    if column.type == "float" or (column.type == "int" and column.nullable):
        array = array.astype(np.float64, copy=False)
    absent = sum(value is None for value in array) if array.dtype == object else int(np.isnan(array).sum())
    return array, f"is missing {absent} times" if absent and not column.nullable else ""


def _is_text(array: Array) -> bool:
    return all(value is None or isinstance(value, str) for value in array)


def _described(column: Column) -> str:
    shape = f" of shape {column.shape}" if column.shape else ""
    return f"{'a nullable' if column.nullable else 'a'} {column.type}{shape}"
