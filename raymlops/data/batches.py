"""Encode rows of a table as a recipe's batch, and join and select nested batches.

Owns the calls of ``encode`` and ``target``. Knows nothing of where rows come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raymlops.data.columns import as_requested
from raymlops.errors import RecipeError
from raymlops.pytree import batch_rows, first_dimensions, leaves, map_tensors, named_children, rebuilt, to_numpy
from raymlops.recipe import Batch, RecipeBase, call_recipe, described, signature_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    Array = npt.NDArray[Any]

_CHUNK_ROWS, _CHUNK_BYTES = 1 << 14, 1 << 21
"""Rows that are encoded at a time: what becomes of wide ones on the way should fit into a CPU's cache."""
_PROBED_ROWS, _PROBES = 256, 8


def encode(recipe: RecipeBase, columns: Mapping[str, Array]) -> Batch:
    """Return the rows of ``columns`` encoded by ``recipe.encode``, with the label if there is one.

    Raises:
        RecipeError: ``encode()`` or ``target()`` raises, or does not return a batch of these rows.
    """
    name = type(recipe).__name__
    columns = as_requested(columns, recipe)
    # Only a request's columns: a recipe that reads another column fails here and not in a replica.
    inputs = {column.name: columns[column.name] for column in signature_of(recipe).inputs}
    rows = len(next(iter(columns.values())))
    batch = call_recipe(f"{name}.encode()", lambda: recipe.encode(inputs))
    _check_rows(batch, rows, where=f"{name}.encode()")
    if recipe.label is None:
        return batch
    if not isinstance(batch, Mapping):
        raise RecipeError(
            f"{name}.encode() returned a {type(batch).__name__}, to which no label can be added",
            hint='Return a dict of tensors; the label joins it as batch["label"].',
        )
    label = call_recipe(f"{name}.target()", lambda: recipe.target(columns))
    return {**batch, "label": label}


def encode_all(
    recipe: RecipeBase,
    columns: Mapping[str, Array],
    *,
    like: Mapping[str, tuple[int, ...]] | None = None,
    on_rows: Callable[[int], None] = lambda _rows: None,
) -> Batch | None:
    """Return all rows as one batch, encoded in chunks; None where that is not flat tensors, rows first.

    None also, at once, where a chunk's rows have other ``shapes`` than ``like``. ``on_rows`` is called with how many
    rows are encoded, after each chunk.
    """
    rows = len(next(iter(columns.values())))
    row_bytes = max(1, sum(values[:1].nbytes for values in columns.values()))
    step = min(_CHUNK_ROWS, max(_CHUNK_BYTES // row_bytes, 1))
    chunks, sizes = [], []
    for start in range(0, max(1, rows), step):
        end = min(start + step, rows)
        chunk = encode(recipe, {key: values[start:end] for key, values in columns.items()})
        if like is not None and shapes(chunk) != like:
            return None
        chunks.append(chunk)
        sizes.append(end - start)
        on_rows(end)
    return join(chunks, rows=sizes)


def probe(recipe: RecipeBase, columns: Mapping[str, Array]) -> Batch | None:
    """Return up to 256 evenly spread rows as one batch; None where rows must be encoded batch by batch.

    That is where a batch is not flat tensors, rows first, or where single rows are encoded in another shape, since
    ``encode`` pads to the longest row of what it is given.
    """
    spread = np.unique(np.linspace(0, len(next(iter(columns.values()))) - 1, _PROBED_ROWS, dtype=np.int64))
    together = join([encode(recipe, rows_at(columns, spread))], rows=[len(spread)])
    if together is None:
        return None
    singly = spread[:: -(-len(spread) // _PROBES)].reshape(-1, 1)
    for row in singly:
        alone = join([encode(recipe, rows_at(columns, row))], rows=[1])
        if alone is None or shapes(alone) != shapes(together):
            return None
    return together


def shapes(batch: Batch) -> dict[str, tuple[int, ...]]:
    """Return the shape of a row in each value of a batch, by the keys that lead to it."""
    return {name: array.shape[1:] for name, array in arrays(batch).items()}


def join(chunks: Sequence[Batch], *, rows: Sequence[int] | None = None) -> Batch | None:
    """Concatenate batches of so many ``rows``, or return None where they are not flat tensors of one shape, rows first.

    Without ``rows`` they are counted by ``batch_rows``. A single batch is not copied.
    """
    return _joined(chunks, [batch_rows(chunk) for chunk in chunks] if rows is None else rows)


def _joined(chunks: Sequence[Any], rows: Sequence[int]) -> Any:
    first = chunks[0]
    if isinstance(first, torch.Tensor):
        shapes = [(count, *first.shape[1:]) for count in rows]
        if [tuple(chunk.shape) for chunk in chunks] != shapes:
            return None
        return first if len(chunks) == 1 else torch.cat(list(chunks))
    parts = [dict(named_children(chunk) or ()) for chunk in chunks]
    if any(part.keys() != parts[0].keys() for part in parts):  # a list has an item for each row
        return None
    values = [_joined([part[key] for part in parts], rows) for key in parts[0]]
    return None if not values or any(value is None for value in values) else rebuilt(first, values)


def select(batch: Batch, indices: torch.Tensor) -> Batch:
    """Return the rows at ``indices`` of a batch of flat tensors, in that order."""
    return map_tensors(batch, lambda tensor: tensor.index_select(0, indices))


def rows_at(columns: Mapping[str, Array], rows: npt.NDArray[np.int64]) -> dict[str, Array]:
    """Return the rows of columns at these positions, in that order."""
    return {name: values[rows] for name, values in columns.items()}


def arrays(batch: Batch) -> dict[str, Array]:
    """Return the values of a nested batch as arrays, by the keys that lead to them."""
    return {path: _array(value) for path, value in leaves(batch)}


def _array(value: Any) -> Array:
    if not isinstance(value, torch.Tensor):
        return np.array(value, dtype=object)
    return to_numpy(torch.view_as_real(value.resolve_conj()) if value.is_complex() else value)


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


def _check_rows(batch: Any, rows: int, *, where: str) -> None:
    """Check that some value of a batch has these rows; others may be masks or numbers that hold for all of them."""
    try:
        returned = batch_rows(batch)
    except TypeError as error:
        raise RecipeError(
            f"{where} returned {described(batch)}, which has no rows",
            hint="Return a dict of tensors, rows first.",
        ) from error
    if rows not in first_dimensions(batch):
        raise RecipeError(f"{where} was given {rows} rows and returned {returned}")
