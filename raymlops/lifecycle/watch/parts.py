"""Which columns of a side are judged by the same own windows: a list of columns and where their baseline begins. Pure.

Training is the baseline of all columns but of those that a person said to be normal since some time, and of those that
were served otherwise than trained from the beginning: these have windows that were served.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from raymlops.lifecycle.watch.windows import place_of
from raymlops.monitor.profiled import shown_name

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from raymlops.profiles.layout import Layout
    from raymlops.profiles.slices import Slice
    from raymlops.state.watch.incidents import Baseline


@dataclass(frozen=True)
class Part:
    """Columns, and pairs of them, that are judged by the same own windows.

    Attributes:
        first: The place of the first window of their baseline; None where that is training.
        only: Their names; a pair is one of them if any of its two columns is.
        without: Those of parts before it, and so are pairs with them.
        told: The columns among them that are named; None of all others.
    """

    first: int | None
    only: frozenset[str]
    without: frozenset[str] = frozenset()
    told: tuple[str, ...] | None = None


class ColumnNames:
    """The names of what is judged of a side."""

    def __init__(self, layout: Layout, slices: Collection[Slice], *, between: bool) -> None:
        """Take the columns' layout, their slices, and whether the correlations of each two are judged as well."""
        placed = layout.placed()
        self.whole = frozenset(shown_name(series) for series, _ in placed if series.missing is not None)
        self._column = {name: name for name in self.whole}
        """Of which column each name is."""
        self._column |= {each.qualify(name): name for name in self.whole for each in slices}
        pairs = combinations(layout.scores, 2) if between else ()
        self._column |= {name: name for one, other in pairs for name in [f"{one.name} and {other.name}"]}
        self.every = frozenset(self._column)

    def named(self, names: Collection[str]) -> frozenset[str]:
        """Return some columns, with their slices."""
        names = {*names}
        return frozenset(name for name, column in self._column.items() if name in names or column in names)

    def of(self, each: Slice) -> frozenset[str]:
        """Return the columns of a slice."""
        return frozenset(each.qualify(name) for name in self.whole)

    def told(self, names: Collection[str]) -> tuple[str, ...]:
        """Return some names in order, without those of slices of columns that are among them."""
        return tuple(sorted(name for name in names if self._column[name] == name or self._column[name] not in names))


def parts(
    columns: ColumnNames, baselines: Sequence[Baseline], skewed: tuple[Collection[str], int] | None, *, window_s: float
) -> list[Part]:
    """Return the columns by the place at which their baseline begins, those of training last.

    A column is judged by the newest baseline that names it, with its slices, then by what was served first where it is
    ``skewed``, which has that place too, and else by training.
    """
    named: list[tuple[Collection[str] | None, int | None]] = [
        (one.columns, place_of(one.start, window_s)) for one in baselines
    ]
    named += [] if skewed is None else [skewed]
    found: dict[tuple[int | None, bool], frozenset[str]] = {}
    claimed: frozenset[str] = frozenset()
    for names, first in [*named, (None, None)]:
        only = (columns.every if names is None else columns.named(names)) - claimed
        if only and (names is not None or only & columns.whole or not claimed):
            found[first, names is None] = found.get((first, names is None), frozenset()) | only
        claimed |= only
    split, before = [], frozenset[str]()
    for (first, others), only in found.items():
        split.append(Part(first, only, before, None if others else columns.told(only)))
        before |= only
    return split
