"""A split that is streamed from Parquet files: row groups are read when a batch needs them, and few are kept.

What it costs: a rank decodes each row group in which it has rows, and since every global batch is dealt to all ranks,
that is each one: W workers read the data W times an epoch, each for itself. The network and the processors that
decode bear it, memory does not. Row groups of 8 to 32 MB suit: reading goes in few large requests, and a window (half
of the cache) still mixes several of them. With many workers or a slow store prefer larger ones, which read faster and
mix less; one that exceeds the cache is held alone, whatever its size.

Owns the way from row numbers to row groups to batches. The order is ``windows``', the files are ``parquet``'s.

Decoded row groups, the latest used ones, within a number of bytes.

Owns what is kept and what goes. Knows nothing of files or recipes.

How a streamed split is drawn and encoded: found on its first rows, once, and handed to every process.

Owns what follows from the size and the shape of encoded rows. Knows nothing of files.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch

from raymlops.data.batches import arrays, batch_bytes, columns_bytes, encode, encode_all, join, rows_at, select
from raymlops.data.columns import conform, hash_columns, needed, table_columns
from raymlops.data.order import windowed_batches
from raymlops.data.parquet_files import GroupReader, ParquetFiles
from raymlops.data.split import SplitData
from raymlops.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from raymlops.recipe import Batch, RecipeBase

    Array = npt.NDArray[Any]
    Columns = dict[str, Array]


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
    return {name: array.shape[1:] for name, array in arrays(batch).items()}


Value = TypeVar("Value")


class GroupCache(Generic[Value]):
    """Keeps values by number. The one that was asked for last is kept whatever its size."""

    def __init__(self, max_bytes: int, *, size_of: Callable[[Value], int]) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        """What the kept values take now."""
        self.loads = 0
        """How often a value was not there."""
        self._size_of = size_of
        self._kept: OrderedDict[int, tuple[Value, int]] = OrderedDict()

    def get(self, number: int, load: Callable[[], Value], *, expected_bytes: int = 0) -> Value:
        """Return a value that is kept, or the one that ``load`` returns; room for it is made before it is loaded."""
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
        """Let go of everything."""
        self._shrink(-1, leave=0)

    def _shrink(self, max_bytes: int, *, leave: int) -> None:
        while self.bytes > max_bytes and len(self._kept) > leave:
            _, (_, size) = self._kept.popitem(last=False)
            self.bytes -= size


class ParquetSplit(SplitData):
    """Rows of Parquet files. Only the signature's inputs and the label are read."""

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
        self.files = files
        self.cache: GroupCache[Any] = GroupCache(cache_bytes, size_of=_size)
        self._reader = GroupReader(files)
        self._ends = np.cumsum(files.group_rows)
        self._written = written
        if plan is not None:
            self.plan = plan

    @cached_property
    def plan(self) -> Plan:
        """Return how the split is drawn: found on its first row group with rows, unless it was handed over.

        Raises:
            RecipeError: the rows are not what the signature says, or ``encode`` breaks its contract.
            StorageError: the file cannot be read.
        """
        first = self._read(int(np.flatnonzero(self.files.group_rows)[0]))
        return plan_of(first, self.recipe, cache_bytes=self.cache.max_bytes)

    def batch(self, indices: torch.Tensor) -> Batch:
        """Return the rows at ``indices`` (int64) as one batch, in that order, on the CPU.

        Raises:
            StorageError: a file cannot be read, or is not what was listed.
            RecipeError: its rows are not what the signature says.
        """
        if not self._by_batch:
            parts, back = self._gather(indices, lambda group, rows: select(self._kept(group), torch.from_numpy(rows)))
            joined = join(parts)
            if joined is not None:
                return select(joined, back)
            self._encode_by_batch()  # row groups differ, which the first one did not show
        parts, back = self._gather(indices, lambda group, rows: rows_at(self._kept(group), rows))
        return encode(self.recipe, rows_at(_concatenated(parts), back.numpy()))

    def global_batches(self, *, batch_size: int, seed: int, epoch: int, skip: int = 0) -> Iterator[torch.Tensor]:
        """Yield the row indices of each global batch of an epoch but the first ``skip``, each row once.

        Shuffled with few row groups open at a time: see ``windows``. What is skipped is not read.
        """
        return windowed_batches(
            self.files.group_rows,
            window_rows=self.plan.window_rows,
            batch_size=batch_size,
            seed=seed,
            epoch=epoch,
            skip=skip,
        )

    def share(self, *, rank: int, world: int) -> torch.Tensor:
        """Return a run of neighbouring rows, so that no row group but those at its ends is decoded by two ranks."""
        most = -(-self.rows // world)
        return torch.arange(min(rank * most, self.rows), min((rank + 1) * most, self.rows))

    def take(self, indices: torch.Tensor) -> Columns:
        """Return the columns of the rows at ``indices``, in that order; each row group is read once."""
        parts, back = self._gather(indices, lambda group, rows: rows_at(self._read(group), rows))
        return rows_at(_concatenated(parts), back.numpy())

    def hashes(self) -> Iterator[npt.NDArray[np.uint64]]:
        """Yield a 64-bit hash for each row in order, a row group at a time, over the columns that training reads."""
        for group, rows in enumerate(self.files.group_rows):
            if rows:
                yield hash_columns(self._read(group))

    def for_recipe(self, recipe: RecipeBase) -> ParquetSplit:
        """Return the same rows as another recipe encodes them."""
        other = ParquetSplit(self.files, name=self.name, recipe=recipe, cache_bytes=self.cache.max_bytes)
        _ = other.plan  # a column that it lacks is found here
        return other

    def describe(self) -> dict[str, Any]:
        """Return as JSON data what another process needs to draw the same rows."""
        found = {"whole": False, "written": self._written, "plan": asdict(self.plan)}
        return {**super().describe(), **found, **self.files.to_dict()}

    def verify(self) -> None:
        """Check, without reading rows, that the files are those that were listed.

        Raises:
            StorageError: a file is gone or was changed.
        """
        self.files.verify()

    @cached_property
    def _by_batch(self) -> bool:
        return self.plan.by_batch

    def _encode_by_batch(self) -> None:
        self._by_batch = True
        self.cache.clear()

    def _kept(self, group: int) -> Any:
        expected = self.plan.row_bytes * int(self.files.group_rows[group])
        return self.cache.get(group, lambda: self._load(group), expected_bytes=expected)

    def _load(self, group: int) -> Any:
        columns = self._read(group)
        if self._by_batch:
            return columns
        encoded = encode_all(self.recipe, columns)
        # One that is of no single shape cannot be kept as tensors; the batch finds out, and goes by columns.
        return encode(self.recipe, columns) if encoded is None else encoded

    def _read(self, group: int) -> Columns:
        """Return the needed columns of a row group, as a request would bring them."""
        names = needed(self.recipe)
        place = self._reader.place(group)
        table, there = self._reader.read(group, names)
        missing = [name for name in names if name not in there]
        if missing:
            raise RecipeError(
                f"{type(self.recipe).__name__}.datasets(): {place}, of the {self.name} split, lacks "
                f"{', '.join(map(repr, missing))}; it has {', '.join(there)}",
                hint="Every file holds the signature's inputs and the label; names of folders are no columns.",
            )
        columns = conform(table_columns(table), self.recipe, place=place)
        self.on_progress()
        label = self.recipe.label
        known = self.__dict__.get("plan")
        if label and known is not None and columns[label].dtype.name != known.label_dtype:
            raise RecipeError(
                f"{type(self.recipe).__name__}.datasets(): the label {label!r} is {columns[label].dtype.name} in "
                f"{place}, but {known.label_dtype} in the first row group of the {self.name} split",
                hint="Give it one type in all files; whole numbers of which some are missing count as float64.",
            )
        return columns

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
    arrays = isinstance(value, Mapping) and all(isinstance(item, np.ndarray) for item in value.values())
    return columns_bytes(value) if arrays else batch_bytes(value)
