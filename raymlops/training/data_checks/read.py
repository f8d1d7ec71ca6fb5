"""Read what is checked of a recipe's splits: one pass, over a bounded number of rows, in bounded memory.

Of a table the rows that training reads, evenly spread; of them the columns of at most 100,000 rows are looked at. Of a
torch dataset the hashes of items, which are all that is known of them, where they are tensors in memory or
``data.checks.rows`` asks for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import TensorDataset

from raymlops.data.batches import batch_bytes
from raymlops.data.row_hashes import hash_columns
from raymlops.profiles.count import profile_of
from raymlops.profiles.drawn_rows import drawn
from raymlops.profiles.learn import PRIVATE_ROWS, Learner
from raymlops.training.data_checks.distinct_rows import DistinctRows
from raymlops.training.data_checks.facts import BoundedInput, SplitFacts, is_constant, missing
from raymlops.training.data_checks.label import Labels

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.config.data import ChecksSection, ColumnBounds
    from raymlops.data.prepare import Prepared
    from raymlops.data.split import SplitData
    from raymlops.profiles.layout import Layout

    Array = npt.NDArray[Any]
    Columns = Mapping[str, Array]

READ_ROWS, READ_BYTES = 1_000_000, 512 << 20
"""Read of each split where nothing is configured, whichever is less."""
LOOKED_AT, VALUES = 100_000, 1 << 22
"""Rows whose columns are looked at, and the numbers in them."""
_UNLIKE = 20
"""Rows with another label than the most frequent one, from which on it is no chance that a column equals the label."""
_OTHERS = 3


def read_splits(prepared: Prepared, section: ChecksSection) -> dict[str, SplitFacts]:
    """Return what is checked of each split; train is the first.

    Raises:
        RecipeError: a row does not match the signature.
        StorageError: a file cannot be read.
    """
    found: dict[str, SplitFacts] = {}
    layout: Layout | None = None
    for name, split in prepared.splits.items():
        identity = prepared.identities[name].digest
        if split.is_table:
            found[name], layout = _of_table(split, prepared, section, identity=identity, layout=layout)
        else:
            found[name] = _of_items(split, section, identity=identity)
    return found


def _of_items(split: SplitData, section: ChecksSection, *, identity: str) -> SplitFacts:
    most = split.rows if section.rows == "all" or _in_memory(split) else section.rows
    if most is None:
        return SplitFacts(split.name, split.rows, identity)
    distinct = DistinctRows()
    hashes, _ = split.some_hashes(at_least=most)
    for chunk in hashes:
        distinct.add(chunk[: most - distinct.added])
        if distinct.added >= most:
            break
    return SplitFacts(split.name, split.rows, identity, read=distinct.added, distinct=distinct)


def _in_memory(split: SplitData) -> bool:
    """Return whether items are tensors in memory, which were all read to identify them, and are few enough."""
    if not isinstance(getattr(split, "dataset", None), TensorDataset) or split.rows > READ_ROWS:
        return False
    return split.rows * batch_bytes(split.batch(torch.arange(1))) <= READ_BYTES


def _of_table(
    split: SplitData, prepared: Prepared, section: ChecksSection, *, identity: str, layout: Layout | None
) -> tuple[SplitFacts, Layout]:
    recipe, inputs = prepared.recipe, [column.name for column in prepared.signature.inputs]
    names = [*inputs, *([recipe.label] if recipe.label else [])]
    most = READ_ROWS if section.rows is None else split.rows if section.rows == "all" else section.rows
    rows, chunks = split.spread(most_rows=most, most_bytes=READ_BYTES if section.rows is None else None)
    distinct, some = DistinctRows(), _Sample(rows)
    labels = Labels(recipe) if recipe.label else None
    bounded = {name: _Bounded(bounds) for name, bounds in section.columns.items() if name in inputs}
    for columns in chunks:
        needed = {name: columns[name] for name in names}
        distinct.add(hash_columns(needed))
        some.add(needed)
        if labels is not None:
            labels.add(columns)
        for name, each in bounded.items():
            each.add(columns[name])
    sample = some.columns()
    profiled = {name: sample[name] for name in inputs}
    if layout is None:
        learner = Learner()
        learner.add(profiled, rows=some.rows)
        layout = learner.layout()
    facts = SplitFacts(
        split.name,
        split.rows,
        identity,
        read=distinct.added,
        looked_at=some.rows,
        distinct=distinct,
        label=None if labels is None else labels.facts(),
        profile=profile_of(profiled, layout, rows=some.rows),
        constant=tuple(name for name in inputs if is_constant(sample[name])),
        as_label=_as_label(profiled, sample[recipe.label]) if recipe.label else (),
        bounded={name: each.facts() for name, each in bounded.items()},
    )
    return facts, layout


class _Sample:
    """The columns of some of ``rows`` rows, which come in order."""

    def __init__(self, rows: int) -> None:
        self.rows = 0
        self._expected, self._seen = rows, 0
        self._drawn: npt.NDArray[np.int64] | None = None
        self._parts: dict[str, list[Array]] = {}

    def add(self, columns: Columns) -> None:
        rows = len(next(iter(columns.values())))
        if self._drawn is None:
            numbers = sum(_numbers_in(values[:64]) / min(64, rows) for values in columns.values())
            most = max(2 * PRIVATE_ROWS, min(LOOKED_AT, int(VALUES / max(1.0, numbers))))
            self._drawn = drawn(self._expected, most=most)
        first, last = np.searchsorted(self._drawn, [self._seen, self._seen + rows])
        chosen = self._drawn[first:last] - self._seen
        for name, values in columns.items():
            self._parts.setdefault(name, []).append(values[chosen])
        self._seen += rows
        self.rows += len(chosen)

    def columns(self) -> dict[str, Array]:
        return {name: np.concatenate(parts) for name, parts in self._parts.items()}


def _numbers_in(values: Array) -> int:
    if values.dtype != object:
        return values.size
    return sum(value.size if isinstance(value, np.ndarray) else 1 for value in values)


def _as_label(inputs: Columns, label: Array) -> tuple[str, ...]:
    """Return the inputs that equal the label wherever both are there: numbers or texts, not nearly all of them one."""
    gone = missing(label) if _is_plain(label) else np.ones(len(label), np.bool_)
    found = []
    for name, values in inputs.items():
        if not _is_plain(values) or (values.dtype == object) != (label.dtype == object):
            continue
        there = ~(missing(values) | gone)
        if there.any() and np.array_equal(values[there], label[there]):
            texts = label[there].astype(str) if label.dtype == object else label[there]
            _, counts = np.unique(texts, return_counts=True)
            if counts.sum() - counts.max() >= _UNLIKE:
                found.append(name)
    return tuple(found)


def _is_plain(values: Array) -> bool:
    """Return whether a column has a number, a truth value or a text a row."""
    if values.dtype == object:
        return isinstance(next((value for value in values if value is not None), None), str)
    return values.ndim == 1 and values.dtype.kind in "biuf"


class _Bounded:
    """An input that the configuration bounds, in all rows that are read."""

    def __init__(self, bounds: ColumnBounds) -> None:
        self._values = None if bounds.values is None else {*bounds.values}
        self._rows = self._nulls = 0
        self._ends: list[float] = []
        self._others: dict[str, None] = {}

    def add(self, values: Array) -> None:
        there = values[~missing(values)] if values.ndim == 1 else values
        self._rows, self._nulls = self._rows + len(values), self._nulls + len(values) - len(there)
        if there.size and there.dtype.kind in "biuf":
            self._ends += [float(there.min()), float(there.max())]
        if self._values is not None and there.ndim == 1:
            known = self._values
            self._others |= dict.fromkeys(repr(one) for one in dict.fromkeys(there.tolist()) if one not in known)

    def facts(self) -> BoundedInput:
        least, most = (min(self._ends), max(self._ends)) if self._ends else (None, None)
        return BoundedInput(self._nulls / max(1, self._rows), least, most, tuple(self._others)[:_OTHERS])
