"""Stream a split from Parquet files: row groups are read when a batch needs them, and cached within a size.

Cost: a rank decodes each row group in which it has rows, and since every global batch is spread over all ranks, that is
every one: W workers read the data W times an epoch. That costs network and CPU, not memory. Row groups of 8 to 32 MB
fit well: few large requests, and a window (half of the cache) still mixes several groups. With many workers or a slow
store prefer larger ones, which read faster and mix less; one that exceeds the cache is held alone, whatever its size.

Owns the mapping from row numbers to row groups to batches, and the cache. ``order`` owns the order, ``parquet`` the
files and the plan that all processes share.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raymlops.data.batches import batch_bytes, columns_bytes, encode, encode_all, join, rows_at, select, shapes
from raymlops.data.columns import as_requested, conform, needed, stackable, table_columns
from raymlops.data.long_passes import begin_pass
from raymlops.data.order import window_numbers, windowed_batches
from raymlops.data.parquet.files import GroupReader, ParquetFiles
from raymlops.data.parquet.plan import Asked, plan_of
from raymlops.data.parquet.read_ahead import ReadAhead
from raymlops.data.random_streams import Stream
from raymlops.data.row_hashes import hash_columns
from raymlops.data.split import ALL_ROWS, Identity, SplitData
from raymlops.errors import RecipeError
from raymlops.profiles.drawn_rows import drawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from raymlops.data.parquet.plan import Plan
    from raymlops.recipe import Batch, RecipeBase

    Array = npt.NDArray[Any]
    Columns = dict[str, Array]


class GroupCache:
    """An LRU cache of values by number, bounded in bytes. The latest one is kept whatever its size."""

    def __init__(self, max_bytes: int, *, size_of: Callable[[Any], int]) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        """Current size of the cached values."""
        self.loads = 0
        """Cache misses."""
        self._size_of = size_of
        self._kept: OrderedDict[int, tuple[Any, int]] = OrderedDict()

    def get(self, number: int, load: Callable[[], Any], *, expected_bytes: int = 0) -> Any:
        """Return a cached value, or that of ``load``, after evicting others to make room for ``expected_bytes``."""
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number][0]
        self._shrink(self.max_bytes - expected_bytes, leave=0)
        value = load()
        self.loads += 1
        size = self._size_of(value)
        self._kept[number] = (value, size)
        self.bytes += size
        self._shrink(self.max_bytes, leave=1)
        return value

    def clear(self) -> None:
        """Evict everything."""
        self._shrink(-1, leave=0)

    def _shrink(self, max_bytes: int, *, leave: int) -> None:
        while self.bytes > max_bytes and len(self._kept) > leave:
            _, (_, size) = self._kept.popitem(last=False)
            self.bytes -= size


class ParquetSplit(SplitData):
    """Rows of Parquet files. Only the signature's inputs, the label and what else ``target`` asks for are read."""

    kind = "parquet"
    is_table = True

    def __init__(
        self,
        files: ParquetFiles,
        *,
        name: str,
        recipe: RecipeBase,
        plan: Plan | None = None,
        cache_bytes: int,
        written: bool = False,
    ) -> None:
        super().__init__(name=name, rows=files.rows, recipe=recipe)
        self.files: ParquetFiles = files
        self.cache = GroupCache(cache_bytes, size_of=_size)
        self._reader = ReadAhead(GroupReader(files), max_bytes=cache_bytes)
        self._ends = np.cumsum(files.group_rows)
        self._written = written
        self._stackable = stackable(recipe)
        self._shapes: dict[int, dict[str, tuple[int, ...]] | None] = {}
        """The shape of a row in each row group that was encoded; None where its rows differ."""
        self._windows: npt.NDArray[np.int64] | None = None
        """Each row group's window in the epoch, once one has started."""
        if plan is not None:
            self.plan = plan

    @cached_property
    def plan(self) -> Plan:
        """Return the plan, computed from the first row group with rows unless it was given.

        Raises:
            RecipeError: the rows do not match the signature, or ``encode`` breaks its contract.
            StorageError: the file cannot be read.
        """
        group = int(np.flatnonzero(self.files.group_rows)[0])
        other = partial(self._other, group)
        return plan_of(self._read(group), self.recipe, cache_bytes=self.cache.max_bytes, other=other)

    def __reduce__(self) -> tuple[Any, ...]:
        again = partial(ParquetSplit, self.files, name=self.name, recipe=self.recipe, plan=self.plan)
        return partial(again, cache_bytes=self.cache.max_bytes, written=self._written), ()

    def batch(self, indices: torch.Tensor) -> Batch:
        """Return the rows at ``indices`` (int64) as one batch, in that order, on the CPU.

        Raises:
            StorageError: a file cannot be read, or changed since it was listed.
            RecipeError: its rows do not match the signature.
        """
        if (found := self.part(indices)) is not None:
            return found
        parts, back = self._gather(indices, lambda group, rows: rows_at(self._columns(group), rows))
        with self.drawn_by(indices):
            return encode(self.recipe, rows_at(_concatenated(parts), back.numpy()))

    def global_batches(self, *, batch_size: int, seed: int, epoch: int, skip: int = 0) -> Iterator[torch.Tensor]:
        """Yield the row indices of each global batch of an epoch but the first ``skip``, each row once.

        Shuffled in windows of few row groups: see ``order``. Skipped rows are not read. While one window is in use, the
        next one is fetched.
        """
        self.start_epoch(seed=seed, epoch=epoch)
        return windowed_batches(
            self.files.group_rows,
            window_rows=self.plan.window_rows,
            batch_size=batch_size,
            seed=seed,
            epoch=epoch,
            skip=skip,
        )

    def start_epoch(self, *, seed: int, epoch: int) -> None:
        """Fetch row groups ahead in the order of the epoch, a window of them; in a loader, of its own windows."""
        super().start_epoch(seed=seed, epoch=epoch)
        windows = window_numbers(self.files.group_rows, window_rows=self.plan.window_rows, seed=seed, epoch=epoch)
        self._windows = windows
        loader, of = self.loader
        order = np.argsort(windows, kind="stable")  # within a window, batches ask for groups by number
        order = order[windows[order] % of == loader]
        self._reader.follow(order.tolist(), most=int(np.bincount(windows).max()))

    def part(self, indices: torch.Tensor) -> Batch | None:
        """Return some rows of a batch; None where what is read with them decides to what they are padded."""
        if self._padded(indices):
            return None
        parts, back = self._gather(indices, self._encoded_rows)
        joined = None if any(part is None for part in parts) else join(parts)
        return None if joined is None else select(joined, back)

    def stretches(self, indices: torch.Tensor) -> npt.NDArray[np.int64]:
        """Return each row's window in the epoch; without one, as in an evaluation, its group.

        Where ``encode`` pads, the last row's is that of all: they are read at once.
        """
        rows = indices[-1:] if self.plan.by_batch else indices
        groups = np.searchsorted(self._ends, rows.numpy(), side="right")
        return groups if self._windows is None else self._windows[groups]

    def share(self, *, rank: int, world: int) -> torch.Tensor:
        """Return consecutive rows, so that two ranks decode only the row groups at their boundary."""
        most = -(-self.rows // world)
        return torch.arange(min(rank * most, self.rows), min((rank + 1) * most, self.rows))

    def take(self, indices: torch.Tensor) -> Columns:
        """Return the columns of the rows at ``indices``, in that order; each row group is read once."""
        parts, back = self._gather(indices, lambda group, rows: rows_at(self._read(group), rows))
        return as_requested(rows_at(_concatenated(parts), back.numpy()), self.recipe)

    def chunks(self) -> Iterator[Columns]:
        """Yield the columns of each row group that has rows."""
        yield from self._chunks_of(np.flatnonzero(self.files.group_rows).tolist(), doing="profiling")

    def spread(self, *, most_rows: int, most_bytes: int | None = None) -> tuple[int, Iterator[Columns]]:
        """Return how many rows are read, and their columns: those of evenly spread row groups, one at least."""
        if most_bytes is not None:
            most_rows = min(most_rows, most_bytes // self.plan.row_bytes)
        groups = np.flatnonzero(self.files.group_rows)
        number = min(len(groups), max(1, most_rows * len(groups) // self.rows))
        chosen = groups[drawn(len(groups), most=number)]
        return int(self.files.group_rows[chosen].sum()), self._chunks_of(chosen.tolist(), doing="checking")

    def _chunks_of(self, groups: list[int], *, doing: str) -> Iterator[Columns]:
        done = begin_pass(doing, self)
        for group in groups:
            yield Asked(as_requested(self._read(group), self.recipe), partial(self._other, group))
            done(int(self._ends[group]))

    def hashes(self) -> Iterator[npt.NDArray[np.uint64]]:
        """Yield a 64-bit hash for each row in order, a row group at a time, over the columns that training reads."""
        done = begin_pass("hashing", self)
        for group, rows in enumerate(self.files.group_rows):
            if rows:
                yield hash_columns(self._read(group))
                done(int(self._ends[group]))

    def identity(self) -> Identity:
        """Return what identifies the files, or the rows where they were written here."""
        if self.files.rows_digest:
            return Identity(self.files.rows_digest, ALL_ROWS)
        of = "its files" if self.files.table is None else f"the files of {self.files.table}"
        return Identity(self.files.digest(), f"the footers of {of} and at most 64 MB of their content")

    def for_recipe(self, recipe: RecipeBase) -> ParquetSplit:
        """Return the same rows as another recipe encodes them."""
        other = ParquetSplit(self.files, name=self.name, recipe=recipe, cache_bytes=self.cache.max_bytes)
        _ = other.plan  # raises where a column is missing
        return other

    def describe(self) -> dict[str, Any]:
        """Return as JSON data what another process needs to draw the same rows."""
        found = {"whole": False, "written": self._written, "plan": asdict(self.plan)}
        found["cache_bytes"] = self.cache.max_bytes
        return {**super().describe(), **found, **self.files.to_dict()}

    def verify(self) -> None:
        """Check, without reading rows, that the files are those that were listed.

        Raises:
            StorageError: a file is gone or was changed.
        """
        self.files.verify()

    def _padded(self, indices: torch.Tensor) -> bool:
        """Return whether these rows are known to need padding to the longest of them.

        Their row groups alone decide that, known or not, so that a batch is the same whatever was read before.
        """
        if self.plan.by_batch:
            return True
        groups = np.unique(np.searchsorted(self._ends, indices.numpy(), side="right")).tolist()
        known = [self._shapes[group] for group in groups if group in self._shapes]
        return any(shape is None or shape != known[0] for shape in known)

    def _encoded_rows(self, group: int, rows: npt.NDArray[np.int64]) -> Batch | None:
        """Return rows of an encoded row group; None where its rows do not have a single shape."""
        encoded = self._kept(group, lambda: self._encoded(group))
        return None if encoded is None else select(encoded, torch.from_numpy(rows))

    def _columns(self, group: int) -> Columns:
        columns: Columns = self._kept(~group, lambda: self._read(group))
        return columns

    def _kept(self, key: int, load: Callable[[], Any]) -> Any:
        """Return a row group's cached rows: encoded under its number, columns under its inverted one."""
        expected = self.plan.row_bytes * int(self.files.group_rows[max(key, ~key)])
        return self.cache.get(key, load, expected_bytes=expected)

    def _encoded(self, group: int) -> Batch | None:
        columns = self._read(group)
        with Stream(group).drawn_from():
            encoded = encode_all(self.recipe, columns)
        self._shapes[group] = None if encoded is None else shapes(encoded)
        return encoded

    def _read(self, group: int) -> Columns:
        """Return the needed columns of a row group, typed as in a request."""
        known = self.__dict__.get("plan")
        names = needed(self.recipe) + list(known.also if known else ())
        place = self._reader.place(group)
        table, there = self._reader.read(group, names)
        missing = [name for name in names if name not in there]
        if missing:
            raise RecipeError(
                f"{type(self.recipe).__name__}.datasets(): {place}, of the {self.name} split, lacks "
                f"{', '.join(map(repr, missing))}; it has {', '.join(there)}",
                hint="Every file holds the signature's inputs, the label and what target() reads; so do folders "
                "column=value, below the one that is named.",
            )
        columns = conform(table_columns(table, as_stored=self._stackable), self.recipe, place=place)
        self.on_progress()
        label = self.recipe.label
        if label and known is not None and columns[label].dtype.name != known.label_dtype:
            raise RecipeError(
                f"{type(self.recipe).__name__}.datasets(): the label {label!r} is {columns[label].dtype.name} in "
                f"{place}, but {known.label_dtype} in the first row group of the {self.name} split",
                hint="Give it one type in all files; whole numbers of which some are missing count as float64.",
            )
        return columns

    def _other(self, group: int, name: str) -> Array:
        """Return a column of a row group that training does not read."""
        table, there = self._reader.read(group, [name])
        if name not in there:
            raise KeyError(name)
        return table_columns(table)[name]

    def _gather(
        self, indices: torch.Tensor, part: Callable[[int, npt.NDArray[np.int64]], Any]
    ) -> tuple[list[Any], torch.Tensor]:
        """Return what ``part`` gives for each row group of ``indices``, and where each index is in them together."""
        chosen = indices.numpy()
        if not len(chosen):
            return [part(int(np.flatnonzero(self.files.group_rows)[0]), chosen)], indices
        groups = np.searchsorted(self._ends, chosen, side="right")
        order = np.argsort(groups, kind="stable")
        found, firsts = np.unique(groups[order], return_index=True)
        starts = self._ends[found] - self.files.group_rows[found]
        parts = [
            part(int(group), chosen[positions] - start)
            for group, start, positions in zip(found, starts, np.split(order, firsts[1:]), strict=True)
        ]
        back = np.empty(len(order), dtype=np.int64)
        back[order] = np.arange(len(order))
        return parts, torch.from_numpy(back)


def _concatenated(parts: list[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _size(value: Any) -> int:
    if value is None:
        return 0
    arrays = isinstance(value, Mapping) and all(isinstance(item, np.ndarray) for item in value.values())
    return columns_bytes(value) if arrays else batch_bytes(value)
