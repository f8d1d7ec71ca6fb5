"""How a streamed split is drawn and encoded: found on its first rows, once, and handed to every process.

Owns what follows from the size and the shape of encoded rows. Knows nothing of files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.training.encoding import batch_bytes, columns_bytes, encode, encode_all, leaves, rows_at

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from raymlops.recipe import Batch, RecipeBase

    Columns = Mapping[str, npt.NDArray[Any]]

_INDEX_BYTES = 24
"""What an epoch's order takes for a row of the window that is drawn from."""
_PROBES = 8


@dataclass(frozen=True)
class Plan:
    """What all processes must agree on, or their batches would differ."""

    window_rows: int
    """Rows that are shuffled together: what half of the cache holds."""
    row_bytes: int
    """Bytes of a row as it is kept."""
    by_batch: bool
    """Whether ``encode`` pads to the longest row it is given: then columns are kept, and each batch is encoded."""
    label_dtype: str | None


def plan_of(columns: Columns, recipe: RecipeBase, *, cache_bytes: int) -> Plan:
    """Return the plan for rows like these, within ``cache_bytes``.

    Raises:
        RecipeError: ``encode`` breaks its contract.
    """
    rows = len(next(iter(columns.values())))
    encoded = encode_all(recipe, columns)
    by_batch = encoded is None or _pads(recipe, columns, encoded)
    row_bytes = 1 + (columns_bytes(columns) if by_batch else batch_bytes(encoded)) // rows
    return Plan(
        window_rows=max(1, cache_bytes // 2 // (row_bytes + _INDEX_BYTES)),
        row_bytes=row_bytes,
        by_batch=by_batch,
        label_dtype=columns[recipe.label].dtype.name if recipe.label else None,
    )


def _pads(recipe: RecipeBase, columns: Columns, encoded: Batch) -> bool:
    """Tell whether single rows get another shape than all rows together."""
    whole = _shapes(encoded)
    probes = np.unique(np.linspace(0, len(next(iter(columns.values()))) - 1, _PROBES, dtype=np.int64))
    return any(_shapes(encode(recipe, rows_at(columns, probe))) != whole for probe in np.split(probes, len(probes)))


def _shapes(batch: Batch) -> dict[str, tuple[int, ...]]:
    return {name: array.shape[1:] for name, array in leaves(batch).items()}
