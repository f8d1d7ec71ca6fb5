"""The plan by which all processes draw equal batches from Parquet files: of what size, and by which columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.data.batches import batch_bytes, columns_bytes, probe
from raymlops.data.columns import as_requested
from raymlops.pytree import batch_rows
from raymlops.recipe import call_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from raymlops.recipe import RecipeBase

    Array = npt.NDArray[Any]
    Columns = dict[str, Array]

_INDEX_BYTES = 24
"""Memory of an epoch's order for a row of the current window."""


@dataclass(frozen=True)
class Plan:
    """What all processes must share for equal batches; computed once, from the first rows."""

    window_rows: int
    """Rows that are shuffled together: half of the cache."""
    row_bytes: int
    """Bytes of a cached row."""
    by_batch: bool
    """Whether ``encode`` pads to its longest row: then columns are cached, and each batch is encoded."""
    label_dtype: str | None
    also: tuple[str, ...] = ()
    """Columns that ``target`` reads beside the inputs and the label."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Rebuild a plan from JSON data."""
        return cls(**{**data, "also": tuple(data.get("also", ()))})


def plan_of(
    columns: Columns, recipe: RecipeBase, *, cache_bytes: int, other: Callable[[str], Array] | None = None
) -> Plan:
    """Return the plan for rows like these, within ``cache_bytes``. ``other`` reads another column of the same rows.

    Raises:
        RecipeError: ``encode`` or ``target`` breaks its contract.
    """
    rows = len(next(iter(columns.values())))
    asked = Asked(as_requested(columns, recipe), other)
    if recipe.label and other is not None:
        call_recipe(f"{type(recipe).__name__}.target()", lambda: recipe.target(asked))
    columns = dict(asked)
    some = probe(recipe, columns)
    per_row = columns_bytes(columns) // rows if some is None else batch_bytes(some) // batch_rows(some)
    return Plan(
        window_rows=max(1, cache_bytes // 2 // (1 + per_row + _INDEX_BYTES)),
        row_bytes=1 + per_row,
        by_batch=some is None,
        label_dtype=columns[recipe.label].dtype.name if recipe.label else None,
        also=asked.also,
    )


class Asked(dict[str, Any]):
    """Columns, to which others are added once they are asked for."""

    def __init__(self, columns: Columns, other: Callable[[str], Array] | None) -> None:
        super().__init__(columns)
        self._other = other
        self.also: tuple[str, ...] = ()

    def __missing__(self, name: str) -> Array:
        if self._other is None:
            raise KeyError(name)
        found = self._other(name)
        self[name] = found
        self.also += (name,)
        return found
