"""Splits: rows drawn by index, and their order in an epoch.

Owns the interface of all kinds of splits, and the two that are held in memory: tables and torch datasets with an index.
Knows nothing of ranks or devices.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from functools import cached_property, partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn

import torch
from torch.utils.data import TensorDataset

from raymlops.data.batches import arrays, columns_bytes, encode, encode_all, probe, select, shapes
from raymlops.data.columns import conform
from raymlops.data.item_hashes import HASH_ROWS, hash_items, items_to_hash
from raymlops.data.long_passes import begin_pass
from raymlops.data.order import derived_seed, global_batches, seed_all
from raymlops.data.random_streams import Stream, drawn_state
from raymlops.data.row_hashes import digest_of, hash_columns
from raymlops.errors import RecipeError
from raymlops.recipe import RecipeBase, call_recipe, described

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    import numpy as np
    import numpy.typing as npt

    from raymlops.data.parquet_files import ParquetFiles
    from raymlops.recipe import Batch

    Array = npt.NDArray[Any]

SAMPLE_ROWS = 64
"""Evenly spread rows that show whether a process has the driver's data, and whether reads are repeatable."""
IDENTITY_ROWS = 256
"""Evenly spread items of a torch dataset that identify it."""
ALL_ROWS = "all rows"
_BATCH = 1
"""Follows seed, epoch and first row in the seed of what a batch draws beside its items."""
_SAMPLE_BYTES = 64 << 20
"""Of ``sample``, which may hold up to twice as much."""


class Identity(NamedTuple):
    """What identifies a split's rows: a SHA-256, and what it was computed from, in words."""

    digest: str
    basis: str


class SplitData(ABC):
    """One split: ``rows`` of it, drawn as batches by index.

    ``columns`` holds a table's columns, label included, where they are all in memory, else None. Only a split that
    ``is_table`` has rows like a request's; ``take`` returns them. ``on_progress`` may be set: long passes call it, at
    least once for 1000 skipped items, for each decoded row group and for 16,384 encoded rows.
    """

    kind: ClassVar[str]
    is_table: ClassVar[bool] = False
    in_turn: ClassVar[bool] = False
    """Whether rows are read in their order, so that several processes would each read all of them."""
    columns: dict[str, Array] | None = None

    def __init__(self, *, name: str, rows: int, recipe: RecipeBase) -> None:
        self.name = name
        self.rows = rows
        self.recipe = recipe
        self.on_progress: Callable[[], None] = _nothing
        self.seeds: tuple[int, int] = (0, 0)
        """The run's seed and the epoch, which decide what is drawn while rows are read."""
        self.loader = (0, 1)
        """Which loader process this is in, of how many that take turns with stretches."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "on_progress": _nothing}

    @abstractmethod
    def batch(self, indices: torch.Tensor) -> Batch:
        """Return the rows at ``indices`` (int64) as one batch, in that order, on the CPU."""

    @abstractmethod
    def for_recipe(self, recipe: RecipeBase) -> SplitData:
        """Return the same rows for another recipe, such as the live version's.

        Raises:
            RecipeError: the table lacks a column of that recipe.
        """

    @property
    def indexed(self) -> Any:
        """Return what a ``sampler`` chooses rows of: columns or a dataset; None where the order is the data's own."""
        return self.columns

    @property
    def read_ahead(self) -> bool:
        """Return whether rows take so long to read that other processes may read them ahead."""
        return True

    def start_epoch(self, *, seed: int, epoch: int) -> None:
        """Let random items of the epoch depend on its number and the run's seed."""
        self.seeds = (seed, epoch)

    def keep(self, rows: range) -> None:  # noqa: B027 - a default for rows that are read in any order
        """Keep these rows once they are read: more of them will be asked for."""

    def stretch(self, indices: torch.Tensor) -> int | None:
        """Return the number of the rows that are read together with these; None where each is read by itself.

        Rows of one stretch are best read by one process, those of the next stretch by another.
        """
        del indices
        return None

    def batches(self, indices: torch.Tensor | None = None, *, batch_size: int) -> Iterator[Batch]:
        """Yield batches of at most ``batch_size`` rows; all rows in order without ``indices``."""
        chosen = torch.arange(self.rows) if indices is None else indices
        for start in range(0, len(chosen), batch_size):
            yield self.batch(chosen[start : start + batch_size])

    def global_batches(self, *, batch_size: int, seed: int, epoch: int, skip: int = 0) -> Iterator[torch.Tensor]:
        """Yield the row indices of each global batch of an epoch but the first ``skip``, each row once.

        The order depends on seed and epoch alone, so it is the same on every rank, for any number of ranks. The last
        batch holds the remainder. Skipped batches are not read.
        """
        return global_batches(self.rows, batch_size=batch_size, seed=seed, epoch=epoch, skip=skip)

    def share(self, *, rank: int, world: int) -> torch.Tensor:
        """Return the indices of one rank's share of all rows, in order: at most ceil(rows / world) of them."""
        return torch.arange(rank, self.rows, world)

    def take(self, indices: torch.Tensor) -> dict[str, Array] | None:
        """Return the columns of the rows at ``indices``, in that order; None where the split is not a table."""
        del indices
        return None

    def sample(self, *, about_rows: int) -> dict[str, Array] | None:
        """Return the columns of every n-th row; None where it is not a table.

        n = rows // ``about_rows``, or larger for wide rows: a sample takes about 128 MB at most, by its first rows.
        """
        first = self.take(torch.arange(min(SAMPLE_ROWS, self.rows)))
        if first is None:
            return None
        fitting = max(1, _SAMPLE_BYTES * min(SAMPLE_ROWS, self.rows) // max(1, columns_bytes(first)))
        return self.take(torch.arange(0, self.rows, max(1, self.rows // min(about_rows, fitting))))

    def hashes(self) -> Iterator[npt.NDArray[np.uint64]]:
        """Yield a 64-bit hash for each row in order, in chunks, equal for equal rows, label included."""
        for batch in self.batches(batch_size=HASH_ROWS):
            yield hash_columns(arrays(batch))

    def some_hashes(self, *, at_least: int) -> tuple[Iterator[npt.NDArray[np.uint64]], float]:  # noqa: ARG002
        """Return hashes of all rows, or of ``at_least`` random ones where rows are slow to read, and their share."""
        return self.hashes(), 1.0

    def digest(self) -> str:
        """Return the SHA-256 of all rows' hashes, which identifies the rows. They are read only once."""
        return self._digest_of_rows

    def identity(self) -> Identity:
        """Return what identifies the rows. All of them are read only where they are in memory."""
        return Identity(self.digest(), ALL_ROWS)

    def mark(self, kind: str) -> str | None:
        """Return the mark ``kind`` of ``describe``, which another process compares; None without one."""
        return self.digest() if kind == "digest" else None

    def is_repeatable(self) -> bool:
        """Return whether rereading gives the same rows."""
        return True

    @property
    def note(self) -> str:
        """Return a note where the rows are not identified by their hashes; else empty."""
        return ""

    def describe(self) -> dict[str, Any]:
        """Return as JSON data what another process needs to draw the same rows: see ``prepare(sources=...)``."""
        return {"kind": self.kind, "rows": self.rows}

    def drawn_by(self, indices: torch.Tensor) -> AbstractContextManager[None]:
        """Return the context in which these rows are read: what it draws depends on them, seed and epoch alone."""
        first = int(indices[0]) if len(indices) else 0
        return Stream(derived_seed(*self.seeds, first, _BATCH)).drawn_from()

    @cached_property
    def _digest_of_rows(self) -> str:
        return digest_of(self.hashes())


class TableSplit(SplitData):
    """A table in memory, encoded once at its first batch, or by batch where ``encode`` pads to its longest row."""

    kind = "table"
    is_table = True

    def __init__(
        self,
        columns: dict[str, Array],
        *,
        name: str,
        recipe: RecipeBase,
        files: ParquetFiles | None = None,
        written: bool = False,
    ) -> None:
        super().__init__(name=name, rows=len(next(iter(columns.values()))), recipe=recipe)
        self.columns: dict[str, Array] = columns
        self._files = files
        self._written = written

    @property
    def read_ahead(self) -> bool:
        """Return whether each batch is encoded."""
        return self.encoded is None

    def batch(self, indices: torch.Tensor) -> Batch:
        """Return the rows at ``indices`` (int64) as one batch, in that order, on the CPU."""
        if self.encoded is None:
            with self.drawn_by(indices):
                return encode(self.recipe, self.take(indices))
        return select(self.encoded, indices)

    def take(self, indices: torch.Tensor) -> dict[str, Array]:
        """Return the columns of the rows at ``indices``, in that order."""
        chosen = indices.numpy()
        return {key: values[chosen] for key, values in self.columns.items()}

    def hashes(self) -> Iterator[npt.NDArray[np.uint64]]:
        """Yield a 64-bit hash for each row in order, in chunks, over all columns."""
        done = begin_pass("hashing", self)
        for start in range(0, self.rows, step := 1 << 20):
            yield hash_columns({name: values[start : start + step] for name, values in self.columns.items()})
            done(min(start + step, self.rows))

    def for_recipe(self, recipe: RecipeBase) -> TableSplit:
        """Return the same rows as another recipe encodes them."""
        columns = conform(self.columns, recipe, place=f"the {self.name} table")
        return TableSplit(columns, name=self.name, recipe=recipe)

    def describe(self) -> dict[str, Any]:
        """Return as JSON data what another process needs to draw the same rows."""
        digest = {"digest": self.digest()}
        if self._files is None:
            return super().describe() | digest
        found = {"kind": "parquet", "rows": self.rows, "whole": True, "written": self._written}
        return {**found, **digest, **self._files.to_dict()}

    @cached_property
    def encoded(self) -> Batch | None:
        """Return all rows as one batch; None if they are encoded batch by batch."""
        with Stream(0).drawn_from():
            some = probe(self.recipe, self.columns)
            if some is None:
                return None
            return encode_all(self.recipe, self.columns, like=shapes(some), on_rows=begin_pass("encoding", self))


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

        Items that draw at random are seeded by (seed, epoch, row): the same on any number of workers. Nothing is taken
        from the stream of the training step.

        Raises:
            RecipeError: an item raises, which it names, or ``collate`` does.
        """
        if self._in_memory:
            return list(self.dataset[indices])
        with self.drawn_by(indices):
            if self._draws:
                return self._collated(self._seeded(indices, seeds=self.seeds, together=1))
            return self._collated(self._items(indices.tolist()))

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
    def _draws(self) -> bool:
        """Whether the first item, or the last, draws from a generator that is seeded."""
        if type(self.dataset) is TensorDataset:
            return False
        with Stream(0).drawn_from():
            before = drawn_state()
            for row in {0, self.rows - 1}:
                call_recipe(f"{self._where}: item {row}", lambda row=row: self.dataset[row])  # type: ignore[misc]
            return drawn_state() != before

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
        spread = torch.linspace(0, self.rows - 1, min(rows, self.rows), dtype=torch.float64).round().long()
        return digest_of(self._hashes(row) for row in _chunks(spread, 1))

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

    def _seeded(self, indices: torch.Tensor, *, seeds: tuple[int, ...] = (), together: int) -> list[Any]:
        """Return items, so many of which are drawn together: seeded by ``seeds`` and the first one's number."""
        items: list[Any] = []
        for part in _chunks(indices, together):
            seed_all(*seeds, int(part[0]), device=torch.device("cpu"))
            items += self._items(part.tolist())
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


def _nothing() -> None:
    """Do nothing."""
