"""The data of a run: a recipe's splits checked, fitted and ready to be drawn by row index.

Owns the way from ``datasets()`` to batches, and the fingerprint. Knows nothing of ranks, epochs or devices:
those are indices to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, TensorDataset, default_collate

from raymlops.errors import RecipeError
from raymlops.recipe import Batch, RecipeBase, batch_rows, call_recipe, described, map_tensors, signature_of
from raymlops.records import DataRecord
from raymlops.training.columns import hash_columns, is_table, table_columns

if TYPE_CHECKING:
    import numpy.typing as npt

    from raymlops.project import Project
    from raymlops.signature import Column

__all__ = ["Prepared", "SplitData", "prepare", "table_columns"]

SPLITS = ("train", "validation", "test")
_ENCODE_ROWS = 1 << 16
_HASH_ROWS = 1024


class SplitData:
    """One split: ``rows`` of it, drawn as batches by index.

    ``columns`` holds a table's columns, label included; it is None for a torch dataset. A table is encoded
    once, at its first batch; where ``encode`` pads rows to different shapes, it is encoded batch by batch.
    """

    def __init__(self, source: Any, *, name: str, recipe: RecipeBase) -> None:
        self.name = name
        self.columns: dict[str, npt.NDArray[Any]] | None = source if isinstance(source, dict) else None
        self.rows = len(next(iter(source.values()))) if isinstance(source, dict) else len(source)
        self._dataset = source
        self._recipe = recipe

    def batch(self, indices: torch.Tensor) -> Batch:
        """Return the rows at ``indices`` (int64) as one batch, in that order, on the CPU."""
        if self.columns is None:
            return _fetch(self._dataset, indices)
        if self._encoded is None:
            return self._encode(indices.numpy())
        return map_tensors(self._encoded, lambda tensor: tensor.index_select(0, indices))

    def batches(self, indices: torch.Tensor | None = None, *, batch_size: int) -> Iterator[Batch]:
        """Yield batches of at most ``batch_size`` rows; all rows in order without ``indices``."""
        chosen = torch.arange(self.rows) if indices is None else indices
        for start in range(0, len(chosen), batch_size):
            yield self.batch(chosen[start : start + batch_size])

    def row_hashes(self) -> npt.NDArray[np.uint64]:
        """Return a 64-bit hash for each row, equal for equal rows, label included."""
        if self.columns is not None:
            return hash_columns(self.columns)
        return np.concatenate([hash_columns(_leaves(batch)) for batch in self.batches(batch_size=_HASH_ROWS)])

    def for_recipe(self, recipe: RecipeBase) -> SplitData:
        """Return the same rows as another recipe encodes them, such as the version that is live.

        Raises:
            RecipeError: the table lacks a column of that recipe.
        """
        source = self._dataset if self.columns is None else _conform(self.columns, self.name, recipe)
        return SplitData(source, name=self.name, recipe=recipe)

    @cached_property
    def _encoded(self) -> Batch | None:
        chunks = [
            self._encode(slice(start, start + _ENCODE_ROWS)) for start in range(0, max(1, self.rows), _ENCODE_ROWS)
        ]
        return _join(chunks)

    def _encode(self, part: Any) -> Batch:
        assert self.columns is not None
        recipe = self._recipe
        name = type(recipe).__name__
        chunk = {key: values[part] for key, values in self.columns.items()}
        # Only what a request brings: a recipe that reads another column fails here and not in a replica.
        inputs = {column.name: chunk[column.name] for column in signature_of(recipe).inputs}
        rows = len(next(iter(chunk.values())))
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
        label = call_recipe(f"{name}.target()", lambda: recipe.target(chunk))
        return {**batch, "label": label}


@dataclass(frozen=True)
class Prepared:
    """A recipe with its state, and its splits."""

    recipe: RecipeBase
    splits: dict[str, SplitData]
    state: dict[str, Any]

    @cached_property
    def data(self) -> DataRecord:
        """Return rows and fingerprint of all splits; it reads every row once."""
        digest = sha256()
        for name, split in self.splits.items():
            digest.update(f"{name}:{split.rows}:".encode())
            digest.update(split.row_hashes().astype("<u8").tobytes())
        return DataRecord(digest.hexdigest(), {name: split.rows for name, split in self.splits.items()})


def prepare(project: Project, *, state: Mapping[str, Any] | None = None) -> Prepared:
    """Load the splits and fit the recipe on the training split, or take over the ``state`` of an earlier fit.

    Raises:
        RecipeError: ``datasets()``, ``fit()`` or ``signature()`` raises, a split is missing, empty or of an unknown
            kind, there is no signature, a column of it or the label is not in a table, or the fitted state is no
            JSON data.
    """
    name = project.recipe_class.__name__
    recipe = call_recipe(f"{name}()", lambda: project.recipe(state=state))
    splits = call_recipe(f"{name}.datasets()", recipe.datasets)
    sources = {part: _source(splits, part, recipe) for part in SPLITS}
    if state is None:
        fitted = _json(call_recipe(f"{name}.fit()", lambda: recipe.fit(sources["train"])), where=f"{name}.fit()")
        recipe = call_recipe(f"{name}()", lambda: project.recipe(state=fitted))
    signature_of(recipe)  # training on a torch dataset never asks for it, serving does
    for part, source in sources.items():
        if isinstance(source, dict):
            sources[part] = _conform(source, part, recipe)
    return Prepared(
        recipe=recipe,
        splits={part: SplitData(source, name=part, recipe=recipe) for part, source in sources.items()},
        state=dict(recipe.state),
    )


def _rows_of(batch: Any, *, where: str) -> int:
    try:
        return batch_rows(batch)
    except (TypeError, IndexError, StopIteration) as error:
        raise RecipeError(
            f"{where} returned {described(batch)}, which has no rows",
            hint="Return a dict of tensors, rows first.",
        ) from error


def _source(splits: Any, part: str, recipe: RecipeBase) -> Any:
    name = type(recipe).__name__
    source = getattr(splits, part, None)
    if source is None:
        raise RecipeError(
            f"{name}.datasets() returned no {part} split, but {type(splits).__name__}",
            hint="Return raymlops.Splits(train=..., validation=..., test=...).",
        )
    if is_table(source):
        source = table_columns(source)
        rows = len(next(iter(source.values())))
    elif isinstance(source, IterableDataset) or not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise RecipeError(
            f"{name}.datasets(): the {part} split is a {type(source).__name__}, which has no rows to draw by index",
            hint="Return a table or a dataset with __len__ and __getitem__: shuffling and exact counts need both.",
        )
    else:
        rows = len(source)
    if rows == 0:
        raise RecipeError(f"{name}.datasets(): the {part} split has no rows", hint=_EMPTY[part])
    return source


_EMPTY = {
    "train": "There is nothing to learn from.",
    "validation": "It decides the best checkpoint: give it rows that are not in train.",
    "test": "It judges the final model once: give it rows that are in neither train nor validation.",
}


def _json(state: Any, *, where: str) -> dict[str, Any]:
    try:
        plain = json.loads(json.dumps(state, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"{where} returned what JSON cannot hold: {error}", hint="Return text, finite numbers, lists and dicts."
        ) from error
    if not isinstance(plain, dict):
        raise RecipeError(f"{where} returned a {type(state).__name__}; return a dict")
    return plain


def _conform(columns: dict[str, Any], part: str, recipe: RecipeBase) -> dict[str, Any]:
    """Give each input column the array type that a request would give it, or say why it cannot have it."""
    name = type(recipe).__name__
    signature = signature_of(recipe)
    wanted = [column.name for column in signature.inputs] + ([recipe.label] if recipe.label else [])
    missing = [column for column in wanted if column not in columns]
    if missing:
        raise RecipeError(
            f"{name}.datasets(): the {part} table lacks {', '.join(map(repr, missing))}; it has {', '.join(columns)}",
            hint="A table holds the signature's inputs and the label.",
        )
    conformed = dict(columns)
    for column in signature.inputs:
        array, message = _as_column(column, columns[column.name])
        if message:
            raise RecipeError(
                f"{name}: column {column.name!r} of the signature is {_described(column)}, but in the {part} table it "
                f"{message}",
                hint="A request brings what the signature says: change the signature, or the table in datasets().",
            )
        conformed[column.name] = array
    return conformed


def _as_column(column: Column, array: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], str]:
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


def _is_text(array: npt.NDArray[Any]) -> bool:
    return all(value is None or isinstance(value, str) for value in array)


def _described(column: Column) -> str:
    shape = f" of shape {column.shape}" if column.shape else ""
    return f"{'a nullable' if column.nullable else 'a'} {column.type}{shape}"


def _fetch(dataset: Any, indices: torch.Tensor) -> Batch:
    if isinstance(dataset, TensorDataset):
        return list(dataset[indices])
    if hasattr(dataset, "__getitems__"):
        return default_collate(dataset.__getitems__(indices.tolist()))
    return default_collate([dataset[index] for index in indices.tolist()])


def _join(chunks: Sequence[Batch]) -> Batch | None:
    """Concatenate encoded chunks, or return None where they are no flat tensors of one shape."""
    first = chunks[0]
    if isinstance(first, torch.Tensor):
        same = all(chunk.shape[1:] == first.shape[1:] for chunk in chunks)
        return torch.cat(list(chunks)) if same else None
    if isinstance(first, Mapping):
        joined = {key: _join([chunk[key] for chunk in chunks]) for key in first}
        return None if any(value is None for value in joined.values()) else joined
    if isinstance(first, tuple | list):
        values = [_join(column) for column in zip(*chunks, strict=True)]
        return None if any(value is None for value in values) else values
    return None


def _leaves(batch: Batch, prefix: str = "") -> dict[str, npt.NDArray[Any]]:
    if isinstance(batch, torch.Tensor):
        return {prefix: batch.detach().cpu().numpy()}
    if isinstance(batch, Mapping):
        items: Any = batch.items()
    elif isinstance(batch, tuple | list) and not all(isinstance(value, str) for value in batch):
        items = enumerate(batch)
    else:
        return {prefix: np.array(batch, dtype=object)}
    return {key: leaf for name, value in items for key, leaf in _leaves(value, f"{prefix}/{name}").items()}
