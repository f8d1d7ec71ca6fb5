"""Encode rows of a table as a recipe's batch, and walk, join and select nested batches.

Owns the calls of ``encode`` and ``target``. Knows nothing of where rows come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raymlops.errors import RecipeError
from raymlops.recipe import Batch, RecipeBase, batch_rows, call_recipe, described, map_tensors, signature_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Array = npt.NDArray[Any]

_CHUNK_ROWS = 1 << 16
_NUMPY_FLOATS = {torch.float16, torch.float32, torch.float64}


def encode(recipe: RecipeBase, columns: Mapping[str, Array]) -> Batch:
    """Return the rows of ``columns`` encoded by ``recipe.encode``, with the label if there is one.

    Raises:
        RecipeError: ``encode()`` or ``target()`` raises, or does not return a batch of these rows.
    """
    name = type(recipe).__name__
    # Only a request's columns: a recipe that reads another column fails here and not in a replica.
    inputs = {column.name: columns[column.name] for column in signature_of(recipe).inputs}
    rows = len(next(iter(columns.values())))
    batch = call_recipe(f"{name}.encode()", lambda: recipe.encode(inputs))
    returned = _rows_of(batch, where=f"{name}.encode()")
    if returned != rows:
        raise RecipeError(f"{name}.encode() was given {rows} rows and returned {returned}")
    if recipe.label is None:
        return batch
    if not isinstance(batch, Mapping):
        raise RecipeError(
            f"{name}.encode() returned a {type(batch).__name__}, to which no label can be added",
            hint='Return a dict of tensors; the label joins it as batch["label"].',
        )
    label = call_recipe(f"{name}.target()", lambda: recipe.target(columns))
    return {**batch, "label": label}


def encode_all(recipe: RecipeBase, columns: Mapping[str, Array]) -> Batch | None:
    """Return all rows as one batch, encoded in chunks; None where chunks are not flat tensors of one shape."""
    rows = len(next(iter(columns.values())))
    chunks = [
        encode(recipe, {key: values[start : start + _CHUNK_ROWS] for key, values in columns.items()})
        for start in range(0, max(1, rows), _CHUNK_ROWS)
    ]
    return join(chunks)


def join(chunks: Sequence[Batch]) -> Batch | None:
    """Concatenate batches, or return None where they are not flat tensors of one shape."""
    first = chunks[0]
    if isinstance(first, torch.Tensor):
        same = all(chunk.shape[1:] == first.shape[1:] for chunk in chunks)
        return torch.cat(list(chunks)) if same else None
    if isinstance(first, Mapping):
        joined = {key: join([chunk[key] for chunk in chunks]) for key in first}
        return None if any(value is None for value in joined.values()) else joined
    if isinstance(first, tuple | list):
        values = [join(column) for column in zip(*chunks, strict=True)]
        return None if any(value is None for value in values) else values
    return None


def select(batch: Batch, indices: torch.Tensor) -> Batch:
    """Return the rows at ``indices`` of a batch of flat tensors, in that order."""
    return map_tensors(batch, lambda tensor: tensor.index_select(0, indices))


def rows_at(columns: Mapping[str, Array], rows: npt.NDArray[np.int64]) -> dict[str, Array]:
    """Return the rows of columns at these positions, in that order."""
    return {name: values[rows] for name, values in columns.items()}


def leaves(batch: Batch, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of a nested batch with the keys that lead to it; a list of texts is one value."""
    items: Any
    if isinstance(batch, Mapping):
        items = batch.items()
    elif isinstance(batch, tuple | list) and not all(isinstance(value, str) for value in batch):
        items = enumerate(batch)
    else:
        yield path, batch
        return
    for key, value in items:
        yield from leaves(value, f"{path}/{key}")


def arrays(batch: Batch) -> dict[str, Array]:
    """Return the values of a nested batch as arrays, by the keys that lead to them."""
    return {path: _array(value) for path, value in leaves(batch)}


def _array(value: Any) -> Array:
    if not isinstance(value, torch.Tensor):
        return np.array(value, dtype=object)
    tensor = value.detach().cpu()
    if tensor.is_floating_point() and tensor.dtype not in _NUMPY_FLOATS:
        tensor = tensor.float()  # numpy has no bfloat16 and no 8-bit floats, which float32 holds exactly
    return tensor.numpy()


def batch_bytes(batch: Batch) -> int:
    """Return the memory of a batch's tensors."""
    return sum(_array_bytes(array) for array in arrays(batch).values())


def columns_bytes(columns: Mapping[str, Array]) -> int:
    """Return the memory of columns, texts and ragged arrays included."""
    return sum(_array_bytes(array) for array in columns.values())


def _array_bytes(array: Array) -> int:
    if array.dtype != object:
        return array.nbytes
    # A small Python object has 56 bytes; equal texts may share one object, so this is an upper bound.
    return array.nbytes + sum(
        value.nbytes + 112 if isinstance(value, np.ndarray) else 56 + len(value)
        for value in array.ravel()
        if value is not None
    )


def _rows_of(batch: Any, *, where: str) -> int:
    try:
        return batch_rows(batch)
    except (TypeError, IndexError, StopIteration) as error:
        raise RecipeError(
            f"{where} returned {described(batch)}, which has no rows",
            hint="Return a dict of tensors, rows first.",
        ) from error
