"""Which columns of a side are judged by the same own windows: parts, each with its baseline. Pure.

Training is the baseline of all columns but of those that a person said to be normal since some time, and of those that
were served otherwise than trained from the beginning: these have windows that were served.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from raymlops.display import some_of
from raymlops.lifecycle.watch.windows import place_of
from raymlops.monitor.profiled import shown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from raymlops.monitor.baseline import Window
    from raymlops.profiles.layout import Layout
    from raymlops.profiles.slices import Slice
    from raymlops.state.watch.incidents import Baseline

    OwnSince = Callable[[int], tuple[Window, ...]]
    """Returns the windows of a serving baseline that begins at a place."""

TRAINING, SERVING = "training", "the first windows served"


@dataclass(frozen=True)
class Part:
    """Columns, and pairs of them, that are judged by the same own windows.

    Attributes:
        only: Their names; a pair is one of them if any of its two columns is.
        without: Those of other parts, and so are pairs with them.
        first: The place of the first window of their baseline; None where that is training, or what was served first.
        own: The windows of the baseline, up to those that are judged.
        against: What they are judged against, for people.
        lacking: What has too few windows, for people.
        told: The columns among them that are named where they are not judged; None where nothing else is judged.
        share: Of the levels of a verdict.
    """

    only: frozenset[str]
    without: frozenset[str] = frozenset()
    first: int | None = None
    own: tuple[Window, ...] = ()
    against: str = TRAINING
    lacking: str = "the serving baseline"
    told: tuple[str, ...] | None = None
    share: float = 1.0


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
    columns: ColumnNames,
    baselines: Sequence[Baseline],
    skewed: tuple[Collection[str], int] | None,
    *,
    own: OwnSince,
    window_s: float,
) -> Iterator[Part]:
    """Yield the columns of each baseline, the newest first, then those that are ``skewed``, and then the others.

    A column is judged by the newest baseline that names it, with its slices, and a pair by that of any of the two.
    ``skewed`` has the place of the first window served, too.
    """
    claimed: frozenset[str] = frozenset()
    for baseline in baselines:
        first, since = place_of(baseline.start, window_s), f"the windows served since {baseline.start:%Y-%m-%d %H:%M}"
        lacking = "the new baseline"
        if baseline.columns is None:
            yield Part(columns.every - claimed, claimed, first, own(first), since, lacking)
            return
        if only := columns.named(baseline.columns) - claimed:
            told = columns.told(only)
            yield Part(only, claimed, first, own(first), f"of {some_of(told, 3)} {since}", lacking, told)
            claimed |= only
    if skewed is not None and (only := columns.named(skewed[0]) - claimed):
        told, first = columns.told(only), skewed[1]
        lacking = "training differs from what is served, and the serving baseline"
        yield Part(only, claimed, first, own(first), f"of {some_of(told, 3)} {SERVING}", lacking, told)
        claimed |= only
    if columns.whole - claimed or not claimed:
        yield Part(columns.every - claimed, claimed)
