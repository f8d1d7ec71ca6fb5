"""A split: rows drawn by index, whatever the recipe returned, and the order in which an epoch draws them.

Owns what all kinds of splits share, and the two that are held in memory: tables and torch datasets with an index.
Knows nothing of ranks or devices: those are indices to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch.utils.data import TensorDataset, default_collate

from raymlops.training.columns import hash_columns
from raymlops.training.conform import conform
from raymlops.training.encoding import encode, encode_all, leaves, select
from raymlops.training.sampling import global_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from raymlops.recipe import Batch, RecipeBase
    from raymlops.training.parquet import ParquetFiles

    Array = npt.NDArray[Any]

_HASH_ROWS = 1024


class SplitData(ABC):
    """One split: ``rows`` of it, drawn as batches by index.

    ``columns`` holds a table's columns, label included, where they are all in memory, else None. Only a split that
    ``is_table`` has rows that a request could bring; ``take`` gives them. ``on_progress`` may be set: reading that
    takes long calls it now and then, at least once for 1000 items that go by and for each row group that is decoded.
    """

    kind: ClassVar[str]
    is_table: ClassVar[bool] = False
    columns: dict[str, Array] | None = None

    def __init__(self, *, name: str, rows: int, recipe: RecipeBase) -> None:
        self.name = name
        self.rows = rows
        self.recipe = recipe
        self.on_progress: Callable[[], None] = _nothing

    @abstractmethod
    def batch(self, indices: torch.Tensor) -> Batch:
        """Return the rows at ``indices`` (int64) as one batch, in that order, on the CPU."""

    @abstractmethod
    def for_recipe(self, recipe: RecipeBase) -> SplitData:
        """Return the same rows as another recipe encodes them, such as the version that is live.

        Raises:
            RecipeError: the table lacks a column of that recipe.
        """

    def batches(self, indices: torch.Tensor | None = None, *, batch_size: int) -> Iterator[Batch]:
        """Yield batches of at most ``batch_size`` rows; all rows in order without ``indices``."""
        chosen = torch.arange(self.rows) if indices is None else indices
        for start in range(0, len(chosen), batch_size):
            yield self.batch(chosen[start : start + batch_size])

    def global_batches(self, *, batch_size: int, seed: int, epoch: int, skip: int = 0) -> Iterator[torch.Tensor]:
        """Yield the row indices of each global batch of an epoch but the first ``skip``, each row once.

        Seed and epoch alone decide the order, so it is the same on every rank of any number. The last batch holds
        what remains. What is skipped is not read.
        """
        return global_batches(self.rows, batch_size=batch_size, seed=seed, epoch=epoch, skip=skip)

    def share(self, *, rank: int, world: int) -> torch.Tensor:
        """Return the indices of one rank's share of all rows, in order: at most ceil(rows / world) of them."""
        return torch.arange(rank, self.rows, world)

    def take(self, indices: torch.Tensor) -> dict[str, Array] | None:
        """Return the columns of the rows at ``indices``, in that order; None where the split is no table."""
        del indices
        return None

    def sample(self, *, about_rows: int) -> dict[str, Array] | None:
        """Return the columns of an even sample: every n-th row, with n = rows // ``about_rows``; None for no table."""
        return self.take(torch.arange(0, self.rows, max(1, self.rows // about_rows)))

    def hashes(self) -> Iterator[npt.NDArray[np.uint64]]:
        """Yield a 64-bit hash for each row in order, in chunks, equal for equal rows, label included."""
        for batch in self.batches(batch_size=_HASH_ROWS):
            yield hash_columns(leaves(batch))

    def row_hashes(self) -> npt.NDArray[np.uint64]:
        """Return the hashes of all rows: 8 bytes each."""
        return np.concatenate(list(self.hashes()))

    def fingerprint(self) -> Iterator[bytes]:
        """Yield what the split's part of the data's fingerprint is made of; every row is read once."""
        for chunk in self.hashes():
            yield chunk.astype("<u8").tobytes()

    def digest(self) -> str:
        """Return the SHA-256 of all rows' hashes."""
        digest = sha256()
        for chunk in self.hashes():
            digest.update(chunk.astype("<u8").tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return as JSON data what another process needs to draw the same rows: see ``prepare(sources=...)``."""
        return {"kind": self.kind, "rows": self.rows}


class TableSplit(SplitData):
    """A table in memory. It is encoded once, at its first batch; where ``encode`` pads, batch by batch."""

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

    def batch(self, indices: torch.Tensor) -> Batch:
        """Return the rows at ``indices`` (int64) as one batch, in that order, on the CPU."""
        if self._encoded is None:
            return encode(self.recipe, self.take(indices))
        return select(self._encoded, indices)

    def take(self, indices: torch.Tensor) -> dict[str, Array]:
        """Return the columns of the rows at ``indices``, in that order."""
        chosen = indices.numpy()
        return {key: values[chosen] for key, values in self.columns.items()}

    def hashes(self) -> Iterator[npt.NDArray[np.uint64]]:
        """Yield a 64-bit hash for each row in order."""
        yield hash_columns(self.columns)

    def for_recipe(self, recipe: RecipeBase) -> TableSplit:
        """Return the same rows as another recipe encodes them."""
        columns = conform(self.columns, recipe, place=f"the {self.name} table")
        return TableSplit(columns, name=self.name, recipe=recipe)

    def describe(self) -> dict[str, Any]:
        """Return as JSON data what another process needs to draw the same rows."""
        if self._files is None:
            return super().describe()
        found = {"kind": "parquet", "rows": self.rows, "whole": True, "written": self._written}
        return {**found, "digest": self.digest(), **self._files.to_dict()}

    @cached_property
    def _encoded(self) -> Batch | None:
        return encode_all(self.recipe, self.columns)


class DatasetSplit(SplitData):
    """A torch dataset with ``__len__`` and ``__getitem__``, whose items are collated into batches."""

    kind = "dataset"

    def __init__(self, dataset: Any, *, name: str, recipe: RecipeBase) -> None:
        super().__init__(name=name, rows=len(dataset), recipe=recipe)
        self._dataset = dataset

    def batch(self, indices: torch.Tensor) -> Batch:
        """Return the items at ``indices`` (int64) as one batch, in that order."""
        dataset = self._dataset
        if isinstance(dataset, TensorDataset):
            return list(dataset[indices])
        if hasattr(dataset, "__getitems__"):
            return default_collate(dataset.__getitems__(indices.tolist()))
        return default_collate([dataset[index] for index in indices.tolist()])

    def for_recipe(self, recipe: RecipeBase) -> DatasetSplit:
        """Return the same items: no recipe encodes them."""
        return DatasetSplit(self._dataset, name=self.name, recipe=recipe)


def _nothing() -> None:
    """Do nothing."""
