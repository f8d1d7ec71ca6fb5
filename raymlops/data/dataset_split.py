"""Torch datasets with an index as splits, and hashes of items: collated as a batch, or of any kind and shape."""

from __future__ import annotations

import json
from functools import cached_property, partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch.utils.data import TensorDataset, default_collate

from raymlops.data.batches import arrays, batch_bytes
from raymlops.data.long_passes import begin_pass
from raymlops.data.order import evenly_spread, seed_all
from raymlops.data.random_streams import Stream, drawn_state
from raymlops.data.row_hashes import digest_of, hash_columns
from raymlops.data.split import HASH_ROWS, SAMPLE_ROWS, Identity, SplitData
from raymlops.errors import RecipeError
from raymlops.pytree import batch_rows, leaves, to_numpy
from raymlops.recipe import RecipeBase, call_recipe, described

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from raymlops.recipe import Batch

IDENTITY_ROWS = 256
"""Evenly spread items that identify a dataset."""
_HASH_BYTES = 64 << 20
_UNCOLLATED_ROWS = 64


class DatasetSplit(SplitData):
    """A torch dataset with ``__len__`` and ``__getitem__``, whose items are collated into batches.

    Items may be random. To be hashed, each is drawn with the global generators seeded by its number, as
    ``RecipeBase.loss`` does for a step, and the generators are restored. Items that still differ draw from elsewhere,
    such as their own generator. A split is identified by its length, by the dataset's ``fingerprint()``, if it has
    one, and by a sample of its items, unless they differ.
    """

    kind = "dataset"

    def __init__(self, dataset: Any, *, name: str, recipe: RecipeBase) -> None:
        super().__init__(name=name, rows=len(dataset), recipe=recipe)
        self.dataset = dataset
        self._draws = False

    @property
    def indexed(self) -> Any:
        """Return the dataset."""
        return self.dataset

    @property
    def read_ahead(self) -> bool:
        """Return whether there is more to an item than to take it from tensors in memory."""
        return not self._in_memory

    def batch(self, indices: torch.Tensor) -> Batch:
        """Return the items at ``indices`` (int64) as one batch, in that order.

        An index of n * rows + row is the row's n-th repetition in the epoch, counted from 0. Items that draw at random
        are seeded by (seed, epoch, index): the same on any number of workers. Nothing is taken from the stream of the
        training step.

        Raises:
            RecipeError: an item raises, which it names, or ``collate`` does.
        """
        if self._in_memory:
            return list(self.dataset[indices])
        with self.drawn_by(indices):
            items = self._drawn(indices)
        with self.drawn_by(indices):  # whatever the items drew
            return self._collated(items)

    def numbered(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows, each raised by the number of rows as often as it came before: repeats draw again.

        Tensors in memory draw nothing.
        """
        if self._in_memory:
            return rows
        order = np.argsort(rows.numpy(), kind="stable")
        in_turn = rows.numpy()[order]
        first = np.flatnonzero(np.r_[True, in_turn[1:] != in_turn[:-1]])
        before = np.empty(len(rows), dtype=np.int64)
        before[order] = np.arange(len(rows)) - np.repeat(first, np.diff(np.r_[first, len(rows)]))
        return rows + torch.from_numpy(before) * self.rows

    def hashes(self) -> Iterator[npt.NDArray[np.uint64]]:
        """Yield a 64-bit hash for each item in order, in chunks, equal in each pass and in every process."""
        return self._hashes_of(torch.arange(self.rows))

    def some_hashes(self, *, at_least: int) -> tuple[Iterator[npt.NDArray[np.uint64]], float]:
        """Return hashes of all items, or of ``at_least`` random ones, the same each time, and their share."""
        if type(self.dataset) is TensorDataset or at_least >= self.rows:
            return super().some_hashes(at_least=at_least)
        drawn = torch.randperm(self.rows, generator=torch.Generator().manual_seed(0))[:at_least]
        return self._hashes_of(drawn.sort().values), at_least / self.rows

    def identity(self) -> Identity:
        """Return what identifies the items; those of a ``TensorDataset`` are in memory and all hashed."""
        if type(self.dataset) is TensorDataset:
            return super().identity()
        found = {"length": str(self.rows)}
        if self._own_fingerprint is not None:
            found["fingerprint()"] = self._own_fingerprint
        if not self._differs:
            found[f"{min(IDENTITY_ROWS, self.rows)} evenly spread items"] = self._sample(IDENTITY_ROWS)
        return Identity(sha256(json.dumps(found).encode()).hexdigest(), ", ".join(found))

    def digest(self) -> str:
        """Return the SHA-256 of all items' hashes; of length and ``fingerprint()`` where items differ."""
        if self._differs:
            return sha256(f"{self.rows} items, fingerprint {self._own_fingerprint}".encode()).hexdigest()
        return self._digest_of_rows

    def mark(self, kind: str) -> str | None:
        """Return ``sample``, a digest of a few items, or ``fingerprint``, the dataset's own."""
        if kind == "sample":
            return self._sample(SAMPLE_ROWS)
        return self._own_fingerprint if kind == "fingerprint" else None

    def is_repeatable(self) -> bool:
        """Return whether what identifies the items is the same when they are drawn again, rare differences included."""
        if self._differs and self._own_fingerprint is not None:
            return True  # then no item identifies them
        return self._sample(HASH_ROWS) == self._sample(HASH_ROWS)

    @property
    def note(self) -> str:
        """Return a note on how items that cannot be seeded are identified."""
        if not self._differs:
            return ""
        how = "its length" if self._own_fingerprint is None else "its length and its fingerprint()"
        return (
            f"items of the {self.name} split differ each time they are read, although torch's generator, random and "
            f"numpy.random are seeded: the split is identified by {how}, not by its items"
        )

    def describe(self) -> dict[str, Any]:
        """Return as JSON data what another process needs to draw the same rows."""
        marks = {"sample": None if self._differs else self.mark("sample"), "fingerprint": self.mark("fingerprint")}
        return super().describe() | {kind: mark for kind, mark in marks.items() if mark is not None}

    def for_recipe(self, recipe: RecipeBase) -> DatasetSplit:
        """Return the same items, which no recipe encodes."""
        return DatasetSplit(self.dataset, name=self.name, recipe=recipe)

    @cached_property
    def _differs(self) -> bool:
        if type(self.dataset) is TensorDataset:
            return False
        return self.mark("sample") != self.mark("sample")

    @cached_property
    def _own_fingerprint(self) -> str | None:
        ask = getattr(self.dataset, "fingerprint", None)
        if not callable(ask):
            return None
        where = f"{self._where}: fingerprint() of a {type(self.dataset).__name__}"
        found = call_recipe(where, ask)
        if not isinstance(found, str):
            raise RecipeError(f"{where} returned {described(found)}", hint="Return text that changes with the items.")
        return found

    @property
    def _where(self) -> str:
        return f"{type(self.recipe).__name__}.datasets(): the {self.name} split"

    def _sample(self, rows: int) -> str:
        return digest_of(self._hashes(row) for row in _chunks(evenly_spread(self.rows, most=rows), 1))

    def _hashes_of(self, rows: torch.Tensor) -> Iterator[npt.NDArray[np.uint64]]:
        # Items that are read together are seeded together: there another size would be other items.
        together = hasattr(self.dataset, "__getitems__") or not self.rows or type(self.dataset) is TensorDataset
        size = HASH_ROWS if together else items_to_hash(self.recipe, self._to_hash(torch.arange(1)))
        done = begin_pass("hashing", self)
        for chunk in _chunks(rows, size):
            yield self._hashes(chunk)
            done(int(chunk[-1]) + 1)

    def _hashes(self, indices: torch.Tensor) -> npt.NDArray[np.uint64]:
        if type(self.dataset) is TensorDataset:
            return hash_columns(arrays(list(self.dataset[indices])))
        return hash_items(self.recipe, self._to_hash(indices))

    def _collated(self, items: list[Any]) -> Batch:
        recipe = type(self.recipe)
        try:
            return call_recipe(f"{recipe.__name__}.collate()", lambda: self.recipe.collate(items))
        except RecipeError as error:
            if recipe.collate is RecipeBase.collate:
                error.hint = "Items that torch's default_collate does not stack need a collate(items), such as to pad."
            raise

    @property
    def _in_memory(self) -> bool:
        return isinstance(self.dataset, TensorDataset) and type(self.recipe).collate is RecipeBase.collate

    def _to_hash(self, indices: torch.Tensor) -> list[Any]:
        """Return items that are each seeded by their number; those read together by the first one's."""
        together = len(indices) if hasattr(self.dataset, "__getitems__") else 1
        with Stream(0).drawn_from():
            return self._seeded(indices, together=together)

    def _drawn(self, indices: torch.Tensor) -> list[Any]:
        """Return items, each seeded by itself from the first batch on in which one of them draws."""
        if not self._draws:
            before = drawn_state()
            items = self._items((indices % self.rows).tolist())
            if drawn_state() == before:
                return items
            self._draws = True
        return self._seeded(indices, seeds=self.seeds, together=1)

    def _seeded(self, indices: torch.Tensor, *, seeds: tuple[int, ...] = (), together: int) -> list[Any]:
        """Return items, so many of which are drawn together: seeded by ``seeds`` and the first one's index."""
        items: list[Any] = []
        for part in _chunks(indices, together):
            seed_all(*seeds, int(part[0]), device=torch.device("cpu"))
            items += self._items((part % self.rows).tolist())
        return items

    def _items(self, rows: list[int]) -> list[Any]:
        items: list[Any] = []
        together = hasattr(self.dataset, "__getitems__")
        try:
            if together:
                return list(self.dataset.__getitems__(rows))
            items.extend(self.dataset[row] for row in rows)
        except (Exception, SystemExit) as error:
            which = f"one of items {_shown(rows)}" if together else f"item {rows[len(items)]}"
            call_recipe(f"{self._where}: {which}", partial(_raise, error))
        return items


def _chunks(indices: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def _shown(rows: list[int]) -> str:
    return ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")


def _raise(error: BaseException) -> NoReturn:
    raise error


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
