"""Turn what a recipe returns as a split into a ``SplitData``, here and in the processes that follow.

Owns the choice of the kind and its errors. Each kind has its own module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from raymlops.data.columns import conform, is_table, needed, table_columns
from raymlops.data.dataset_split import DatasetSplit
from raymlops.data.iterable_split import IterableSplit
from raymlops.data.parquet.files import ParquetFiles, is_parquet, list_parquet
from raymlops.data.parquet.plan import Plan
from raymlops.data.parquet_split import ParquetSplit
from raymlops.data.ray_dataset import FOLDER, is_ray_dataset, materialize
from raymlops.data.split import SplitData, TableSplit
from raymlops.errors import RecipeError
from raymlops.recipe import described
from raymlops.storage.delta.tables import name_of
from raymlops.storage.filesystem import join

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.config.train import TrainSection
    from raymlops.recipe import RecipeBase

_MARKS = ("digest", "sample", "fingerprint", "head")
"""Marks that ``SplitData.describe`` may hold beside the number of rows."""
_KINDS = "a table, Parquet files (path, folder, glob, URI or list), a Delta table, a torch or a Ray Data dataset"


@dataclass(frozen=True)
class Memory:
    """Memory limits of a Parquet split in each process."""

    whole_bytes: int = 64 << 20
    """Smaller files are read whole, as a table."""
    cache_bytes: int = 256 << 20
    """Larger ones are streamed, with a cache of this size; half of it is shuffled together."""

    @classmethod
    def of(cls, section: TrainSection, *, whole_bytes: int = whole_bytes) -> Memory:
        """Return the limits that are configured."""
        return cls(whole_bytes, cache_bytes=2 * section.shuffle_window_mb << 20)


@dataclass(frozen=True)
class Source:
    """A split as it was returned, not yet checked against the recipe.

    ``data`` holds a table's columns, a list of Parquet files to stream, or a dataset.
    """

    part: str
    data: Any
    memory: Memory
    files: ParquetFiles | None = None
    """The files that ``data`` was read from."""
    written: bool = False
    """Whether the files were written here, from Ray Data."""
    known: Mapping[str, Any] | None = None
    """The description from an earlier process, if any."""

    def to_fit(self) -> Any:
        """Return the argument of ``fit``."""
        return self.data.dataset() if isinstance(self.data, ParquetFiles) else self.data

    def refuse_other_columns(self, recipe: RecipeBase) -> None:
        """Reject a version of a Delta table without the columns of the signature, as far as this is known before a fit.

        Raises:
            RecipeError: naming the version, and what it has.
        """
        if self.files is None or (table := self.files.table) is None:
            return
        try:
            names = needed(recipe)
        except RecipeError:  # a signature that needs what ``fit`` returns
            return
        if missing := [name for name in names if name not in table.columns.names]:
            raise RecipeError(
                f"{type(recipe).__name__}.datasets(): {table}, the {self.part} split, lacks "
                f"{', '.join(map(repr, missing))}; it has {', '.join(table.columns.names)}",
                hint="A table holds the signature's inputs and the label. Where its columns were renamed or dropped, "
                "name an earlier version, such as TABLE@v3, or change the signature.",
            )

    def split(self, recipe: RecipeBase) -> SplitData:
        """Return the split that ``recipe`` trains on.

        Raises:
            RecipeError: its rows do not match the signature, or differ from those of the earlier process.
            StorageError: its first rows cannot be read.
        """
        split = self._split(recipe)
        known = self.known or {}
        kind, rows = known.get("kind"), known.get("rows")
        if known and not stands_alone(known) and (split.kind, split.rows) != (kind, rows):
            raise _other_rows(self.part, recipe, f"{split.rows} rows ({split.kind})", f"{rows} rows ({kind})")
        for mark in _MARKS:
            there = known.get(mark)
            # Rows that differ each time they are read, even in this process, cannot be compared.
            if there and (here := split.mark(mark)) != there and split.mark(mark) == here:
                raise _other_rows(self.part, recipe, f"{rows} rows", "other ones")
        return split

    def _split(self, recipe: RecipeBase) -> SplitData:
        known = self.known or {}
        self.refuse_other_columns(recipe)
        if isinstance(self.data, dict):
            columns = conform(self.data, recipe, place=f"the {self.part} table")
            return TableSplit(columns, name=self.part, recipe=recipe, files=self.files, written=self.written)
        if isinstance(self.data, ParquetFiles):
            plan = Plan.from_dict(known["plan"]) if known else None
            split = ParquetSplit(
                self.data,
                name=self.part,
                recipe=recipe,
                plan=plan,
                cache_bytes=known.get("cache_bytes", self.memory.cache_bytes),
                written=self.written,
            )
            _ = split.plan  # raises where the first rows are wrong
            return split
        if _has_index(self.data):
            return DatasetSplit(self.data, name=self.part, recipe=recipe)
        found = IterableSplit(self.data, name=self.part, recipe=recipe, known=self.known)
        _refuse_empty(found.rows, self.part, call=f"{type(recipe).__name__}.datasets()")
        return found


def stands_alone(known: Mapping[str, Any] | None) -> bool:
    """Return whether a description is enough to read the split, without calling ``datasets()``."""
    return known is not None and known["kind"] == ParquetSplit.kind


def open_source(
    splits: Any,
    part: str,
    *,
    call: str,
    known: Mapping[str, Any] | None,
    root_uri: str,
    memory: Memory,
    versions: dict[str, int] | None = None,
) -> Source:
    """Return a split of what ``call``, such as ``Net.datasets()``, returned, or of its ``known`` description.

    ``versions`` of Delta tables are those of ``list_parquet``.

    Raises:
        RecipeError: the split is missing, or of an unsupported kind.
        UsageError, NotFoundError: a version of a Delta table cannot be read.
        StorageError: a Parquet file is damaged, or Ray Data could not be written under ``root_uri``.
    """
    if known is not None and stands_alone(known):
        files, whole = ParquetFiles.from_dict(known), bool(known["whole"])
        data = files.columns() if whole else files
        return Source(part, data, memory, files=files, written=bool(known["written"]), known=known)
    source = getattr(splits, part, None)
    if source is None:
        raise RecipeError(
            f"{call} returned no {part} split, but {type(splits).__name__}",
            hint="Return raymlops.Splits(train=..., validation=..., test=...).",
        )
    written, source = is_ray_dataset(source), name_of(source)
    if written or is_parquet(source):
        files = (
            materialize(source, join(root_uri, FOLDER), part=part)
            if written
            else list_parquet(source, versions=versions)
        )
        _refuse_empty(files.rows, part, call=call)
        data = files.columns() if files.memory_bytes <= memory.whole_bytes else files
        return Source(part, data, memory, files=files, written=written, known=known)
    if is_table(source):
        source = table_columns(source)
        _refuse_empty(len(next(iter(source.values()))), part, call=call)
    else:
        _refuse_other(source, part, call=call)
        if _has_index(source):
            _refuse_empty(len(source), part, call=call)
    return Source(part, source, memory, known=known)


def _refuse_empty(rows: int, part: str, *, call: str) -> None:
    if rows == 0:
        raise RecipeError(f"{call}: the {part} split has no rows", hint=_EMPTY[part])


def _other_rows(part: str, recipe: RecipeBase, here: str, there: str) -> RecipeError:
    return RecipeError(
        f"{type(recipe).__name__}.datasets() returned a {part} split of {here} in this process, "
        f"but of {there} on the driver",
        hint="It must return the same rows in every process, or one rank trains on what another validates with: seed "
        "what datasets() draws, such as by np.random.default_rng(0), and read what all nodes can read.",
    )


def _refuse_other(source: Any, part: str, *, call: str) -> None:
    where = f"{call}: the {part} split is {described(source)}"
    if isinstance(source, DataLoader):
        raise RecipeError(
            f"{where}, which makes its own batches",
            hint="Return its dataset: raymlops makes the batches, order and shares.",
        )
    if _has_index(source):
        return
    if not hasattr(source, "__iter__"):
        raise RecipeError(f"{where}, which has neither rows by index nor an iterator", hint=f"Return {_KINDS}.")
    if hasattr(source, "__next__"):
        raise RecipeError(
            f"{where}, which can be read only once", hint="Return an object whose __iter__ starts a new pass."
        )


def _has_index(source: Any) -> bool:
    from torch.utils.data import IterableDataset

    # IterableDataset inherits __getitem__, which raises.
    indexed = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    return indexed and not isinstance(source, IterableDataset)


_EMPTY = {
    "train": "There is nothing to learn from.",
    "validation": "It decides the best checkpoint: give it rows that are not in train.",
    "test": "It judges the final model once: give it rows that are in neither train nor validation.",
}
