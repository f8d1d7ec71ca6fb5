"""Hashes of a torch dataset's items, collated as a batch or of any kind and shape.

Knows nothing of where items come from.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import default_collate

from raymlops.data.batches import arrays, batch_bytes
from raymlops.data.row_hashes import hash_columns
from raymlops.pytree import batch_rows, leaves, to_numpy
from raymlops.recipe import RecipeBase

if TYPE_CHECKING:
    import numpy.typing as npt

HASH_ROWS = 1024
"""At most so many items are hashed at a time."""
_HASH_BYTES = 64 << 20
_UNCOLLATED_ROWS = 64


def hash_items(recipe: RecipeBase, items: list[Any]) -> npt.NDArray[np.uint64]:
    """Return a 64-bit hash for each item. Items of a recipe's own ``collate`` may be of any kind and shape."""
    if type(recipe).collate is RecipeBase.collate:
        return hash_columns(arrays(default_collate(items)))
    return np.array([_item_hash(item) for item in items], dtype=np.uint64)


def _item_hash(item: Any) -> int:
    digest = sha256()
    for path, value in leaves(item):
        array = to_numpy(value) if isinstance(value, torch.Tensor) else np.asarray(value)
        content = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
        digest.update(f"{path}:{array.dtype}:{array.shape}:".encode() + content)
    return int.from_bytes(digest.digest()[:8], "little")


def items_to_hash(recipe: RecipeBase, items: list[Any]) -> int:
    """Return how many items like these are hashed at a time: fewer where each is large."""
    if type(recipe).collate is not RecipeBase.collate:
        return _UNCOLLATED_ROWS
    batch = default_collate(items)
    return min(HASH_ROWS, max(1, _HASH_BYTES * batch_rows(batch) // max(1, batch_bytes(batch))))
