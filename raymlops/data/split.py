"""Splits: rows drawn by index, and their order in an epoch.

Owns the interface of all kinds of splits, and that of tables in memory.
Knows nothing of ranks or devices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch

from raymlops.data.batches import arrays, columns_bytes, encode, encode_all, probe, rows_at, select, shapes
from raymlops.data.columns import conform
from raymlops.data.long_passes import begin_pass
from raymlops.data.order import derived_seed, global_batches
from raymlops.data.random_streams import Stream
from raymlops.data.row_hashes import digest_of, hash_columns
from raymlops.profiles.drawn_rows import drawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    import numpy as np
    import numpy.typing as npt

    from raymlops.data.parquet.files import ParquetFiles
    from raymlops.recipe import Batch, RecipeBase

    Array = npt.NDArray[Any]

SAMPLE_ROWS = 64
"""Evenly spread rows that show whether a process has the driver's data, and whether reads are repeatable."""
HASH_ROWS = 1024
"""At most so many rows are hashed at a time, where each is read for that."""
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
    files: ParquetFiles | None = None
    """The files that hold the rows, if any."""

    def __init__(self, *, name: str, rows: int, recipe: RecipeBase) -> None:
        self.name = name
        self.rows = rows
        self.recipe = recipe
        self.on_progress: Callable[[], None] = _nothing
        self.seeds: tuple[int, int] = (0, 0)
        """The run's seed and the epoch, which decide what is drawn while rows are read."""
        self.sampled: tuple[int, int, torch.Tensor] | None = None
        """The rows that a ``sampler`` has drawn last, after their seed and epoch."""
        self.loader = (0, 1)
        """Which loader process this is in, of how many that take turns with stretches."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "on_progress": _nothing, "sampled": None}

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

    def numbered(self, rows: torch.Tensor) -> torch.Tensor:
        """Return what ``batch`` takes for the rows that a sampler has drawn for an epoch."""
        return rows

    def start_epoch(self, *, seed: int, epoch: int) -> None:
        """Let random items of the epoch depend on its number and the run's seed."""
        self.seeds = (seed, epoch)

    def keep(self, rows: range) -> None:  # noqa: B027 - a default for rows that are read in any order
        """Keep these rows once they are read: more of them will be asked for."""

    def stretches(self, indices: torch.Tensor) -> npt.NDArray[np.int64] | None:
        """Return for each row, or for all, the stretch that it is read with; None where each is read by itself.

        Rows of one stretch are best read by one process, those of the next stretch by another.
        """
        del indices
        return None

    def part(self, indices: torch.Tensor) -> Batch | None:
        """Return some rows of a batch, to be joined with those of other stretches; None where that is impossible."""
        del indices
        return None

    def batches(self, indices: torch.Tensor | None = None, *, batch_size: int) -> Iterator[Batch]:
        """Yield batches of at most ``batch_size`` rows; all rows in order without ``indices``."""
        chosen = torch.arange(self.rows) if indices is None else indices
        for start in range(0, len(chosen), batch_size):
            yield self.batch(chosen[start : start + batch_size])

    def global_batches(self, *, batch_size: int, seed: int, epoch: int, skip: int = 0) -> Iterator[torch.Tensor]:
        """Start an epoch and yield the row indices of each of its global batches but the first ``skip``, each row once.

        The order depends on seed and epoch alone, so it is the same on every rank, for any number of ranks. The last
        batch holds the remainder. Skipped batches are not read.
        """
        self.start_epoch(seed=seed, epoch=epoch)
        return global_batches(self.rows, batch_size=batch_size, seed=seed, epoch=epoch, skip=skip)

    def share(self, *, rank: int, world: int) -> torch.Tensor:
        """Return the indices of one rank's share of all rows, in order: at most ceil(rows / world) of them."""
        return torch.arange(rank, self.rows, world)

    def take(self, indices: torch.Tensor) -> dict[str, Array] | None:
        """Return the columns of the rows at ``indices``, in that order; None where the split is not a table."""
        del indices
        return None

    def sample(self, *, about_rows: int) -> dict[str, Array] | None:
        """Return the columns of ``drawn`` rows, in order; None where it is not a table.

        They are at least ``about_rows``, and not twice as many; fewer of wide rows: a sample takes about 128 MB at
        most, by its first rows.
        """
        first = self.take(torch.arange(min(SAMPLE_ROWS, self.rows)))
        if first is None:
            return None
        return self.take(torch.from_numpy(self.sampled_rows(first, about_rows=about_rows)))

    def sampled_rows(self, some: Mapping[str, Array], *, about_rows: int) -> npt.NDArray[np.int64]:
        """Return the numbers of the rows of ``sample``, rising, by the columns of some rows."""
        each = max(1, columns_bytes(some)) / max(1, len(next(iter(some.values()))))
        step = max(1, self.rows // min(about_rows, max(1, int(_SAMPLE_BYTES / each))))
        return drawn(self.rows, most=-(-self.rows // step))

    def chunks(self) -> Iterator[Mapping[str, Array]]:
        """Yield the columns of all rows in order, some rows at a time; none where it is not a table.

        A column that training does not read is there when it is read by name.
        """
        yield from ()

    def spread(self, *, most_rows: int, most_bytes: int | None = None) -> tuple[int, Iterator[Mapping[str, Array]]]:
        """Return about how many rows are read, and their columns, some rows at a time; none where it is not a table.

        They are evenly spread, at most so many and so large, as far as they can be read by themselves.
        """
        del most_rows, most_bytes
        return 0, iter(())

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
        self.files = files
        self._written = written

    @property
    def read_ahead(self) -> bool:
        """Return whether each batch is encoded. Few rows say so of the test split, which is read last, if at all."""
        if self.name != "test":
            return self.encoded is None
        with Stream(0).drawn_from():
            return probe(self.recipe, self.columns) is None

    def batch(self, indices: torch.Tensor) -> Batch:
        """Return the rows at ``indices`` (int64) as one batch, in that order, on the CPU."""
        if self.encoded is None:
            with self.drawn_by(indices):
                return encode(self.recipe, self.take(indices))
        return select(self.encoded, indices)

    def take(self, indices: torch.Tensor) -> dict[str, Array]:
        """Return the columns of the rows at ``indices``, in that order."""
        return rows_at(self.columns, indices.numpy())

    def chunks(self) -> Iterator[dict[str, Array]]:
        """Yield the whole table."""
        yield self.columns

    def spread(self, *, most_rows: int, most_bytes: int | None = None) -> tuple[int, Iterator[dict[str, Array]]]:
        """Return how many rows are read, and their columns: ``drawn`` rows, in order."""
        if most_bytes is not None:
            first = {name: values[:SAMPLE_ROWS] for name, values in self.columns.items()}
            each = max(1, columns_bytes(first) // min(SAMPLE_ROWS, self.rows))
            most_rows = min(most_rows, max(1, most_bytes // each))
        if most_rows >= self.rows:
            return self.rows, iter([self.columns])
        return most_rows, iter([rows_at(self.columns, drawn(self.rows, most=most_rows))])

    def identity(self) -> Identity:
        """Return what identifies the rows: all of them."""
        table = None if self.files is None else self.files.table
        return Identity(self.digest(), ALL_ROWS if table is None else f"{ALL_ROWS} of {table}")

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
        if self.files is None:
            return super().describe() | digest
        found = {"kind": "parquet", "rows": self.rows, "whole": True, "written": self._written}
        return {**found, **digest, **self.files.to_dict()}

    @cached_property
    def encoded(self) -> Batch | None:
        """Return all rows as one batch; None if they are encoded batch by batch."""
        with Stream(0).drawn_from():
            some = probe(self.recipe, self.columns)
            if some is None:
                return None
            return encode_all(self.recipe, self.columns, like=shapes(some), on_rows=begin_pass("encoding", self))


def _nothing() -> None:
    """Do nothing."""
