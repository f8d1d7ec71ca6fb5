"""The verdict on a window of traffic: what moved, by how much, and whether that is more than own windows do. Pure.

Knows nothing of where profiles lie, nor of who is told; how it is decided is ``outcome``'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from raymlops.display import some_of
from raymlops.monitor import effects
from raymlops.monitor.contrasts import ENDS, LOCATION, MAX_SHARES, SHARE, Contrast, contrasts, in_words
from raymlops.monitor.outcome import (
    FEWEST_EFFECTIVE,
    FEWEST_ROWS,
    Comparison,
    Outcome,
    alarm_level,
    fewest_own,
    warn_level,
)
from raymlops.monitor.pairs import PairCounts
from raymlops.monitor.unequal_rows import compare_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raymlops.monitor.conformal import Ranked
    from raymlops.monitor.own_windows import OwnWindows

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

OTHER, UNKNOWN = "other", "texts that training has not, or hardly"
"""The last label of a column of texts, and how it is told where it is new, or where a category is called the first."""
RARER = f"share of all but the {MAX_SHARES} commonest categories"
"""What moved of texts whose categories luck chose: it has those that are none."""
MOST_HISTOGRAMS = 20
"""In a verdict, so that it can be kept."""


@dataclass(frozen=True)
class ColumnCounts:
    """What a profile holds of one column, on the bins of the reference.

    Attributes:
        name: Of the column.
        blocks: Counts of consecutive blocks of the reference, of shape (blocks, bins).
        nulls: Nulls of each block, of shape (blocks,).
        windows: Counts of the window of traffic, of shape (1 or 2, bins), after those of the window before it, if there
            is one; before a window that is shorter than a day are the same hours of the day before.
        window_nulls: Nulls of these windows, of shape (1 or 2,).
        ordered: Whether bins are intervals in their order (numbers, times, lengths), or categories.
        edges: Of intervals, one more than bins, for quantiles; None where there are none to show.
        labels: Of categories, one a bin; empty where there are none to show.
        influence: How much the model's output depends on the column, from 0 to 1; None where nobody knows.
        slice: Of which rows they are counts; empty for all.
        without: The category whose share is not compared on its own (see ``chosen_categories``); None for none.
        drawn: The variance that drawing a sample adds to what a window of traffic shows; own windows are none.
        alike: By how much more than that of the reference's the variance of each window of traffic is, in those of
            independent rows, since rows of one request are alike; empty for none.
    """

    name: str
    blocks: Counts
    nulls: Counts
    windows: Counts
    window_nulls: Counts
    ordered: bool
    edges: Floats | None = None
    labels: tuple[str, ...] = ()
    influence: float | None = None
    slice: str = ""
    without: int | None = None
    drawn: float = 0.0
    alike: tuple[float, ...] = ()

    def rows(self, own: OwnWindows) -> Counts:
        """Return the rows of own windows and then of those of traffic."""
        before, now = own.sums(self.blocks.sum(axis=1) + self.nulls), self.windows.sum(axis=1) + self.window_nulls
        return np.concatenate([before, now])

    def contrasts(self, own: OwnWindows) -> tuple[Floats, tuple[Contrast, ...]]:
        """Return the contrasts of own windows and then of those of traffic, and what they are."""
        return contrasts(
            np.concatenate([own.sums(self.blocks), self.windows]),
            np.concatenate([own.sums(self.nulls), self.window_nulls]),
            ordered=self.ordered,
            without=self.without,
        )


@dataclass(frozen=True)
class ColumnDrift:
    """How one column of the window compares with own windows, and what of it moved most.

    Attributes:
        column: Its name, or ``ONE and OTHER`` of a pair, which has neither quantiles, nulls nor a distance of its own.
        moved: ``location`` where that leads to the verdict, else the contrast that is furthest off: ``location``,
            ``scale``, ``skew``, ``nulls``, ``share of LABEL``; of a pair ``correlation BEFORE -> AFTER``.
        distance: Of it, signed, in standard deviations of own windows.
        distance_running: What both of two windows running reach; None for one window.
        p: Student's t of ``distance``, after Holm over all contrasts of all columns.
        flagged: Whether this column alone leads to the verdict.
        unjudged: Contrasts whose own windows follow each other too closely to be ranked: only a slip is seen in them.
        jensen_shannon: Of reference and window, nulls being a value, from 0 to 1.
        nulls: Their share before and after.
        quantiles: At .05, .25, .5, .75, .95, before and after; empty for categories. One that is outside of ``span`` is
            NaN, in JSON null: profiles know no more of it than on which side, which ``outside`` says.
        new: Categories that the reference had none of.
        vanished: Categories that the window should have had at least 10 rows of, and has none.
        influence: How much the model's output depends on the column; None where nobody knows.
        histogram: Before and after, of the first 20 flagged columns; else None.
        span: The range of the reference's bins, of what has quantiles.
        outside: The shares of values below and above it, before and after.
    """

    column: str
    moved: str
    distance: float
    distance_running: float | None
    p: float
    flagged: bool
    unjudged: tuple[str, ...]
    jensen_shannon: float
    nulls: tuple[float, float]
    quantiles: tuple[tuple[float, ...], tuple[float, ...]] | tuple[()]
    new: tuple[str, ...]
    vanished: tuple[str, ...]
    influence: float | None
    histogram: effects.Histogram | None = None
    span: tuple[float, float] | tuple[()] = ()
    outside: tuple[tuple[float, float], tuple[float, float]] | tuple[()] = ()

    @property
    def quantile_texts(self) -> tuple[tuple[str, ...], ...]:
        """Return the quantiles as they are shown, before and after."""
        outside = self.outside or ((), ())
        return tuple(
            effects.in_words(side, self.span, beyond) for side, beyond in zip(self.quantiles, outside, strict=False)
        )


@dataclass(frozen=True)
class DriftVerdict:
    """What is to be said of a window.

    Attributes:
        outcome: ``ok``, ``warn``, ``alarm`` or ``insufficient``.
        reason: Why, with numbers, in one sentence.
        rows: Of the window.
        own_windows: Of the reference, of the window's length.
        effective_windows: Unrelated windows that they are worth, in the column that is judged where that is least.
        p_one: The rank of this window; None where it is insufficient, or nothing varies.
        p_two: The rank of this and the one before; None where there was none.
        columns: Flagged ones first, then by influence on the output, then by distance.
        band: The distance that one own window in twenty exceeds in any column; None where there are too few of them.
        band_running: What both of one pair of own windows in 200 exceed; None without two running, or with too few.
    """

    outcome: Outcome
    reason: str
    rows: int
    own_windows: int
    effective_windows: float
    p_one: float | None
    p_two: float | None
    columns: tuple[ColumnDrift, ...]
    band: float | None = None
    band_running: float | None = None

    @property
    def flagged(self) -> tuple[str, ...]:
        """Return the names of the columns that lead to the verdict."""
        return tuple(column.column for column in self.columns if column.flagged)


def judge(columns: Sequence[ColumnCounts | PairCounts], own: OwnWindows, *, share: float = 1.0) -> DriftVerdict:
    """Judge the last window of ``columns``, with the one before it where there is one.

    Args:
        columns: Of the same blocks and windows, of all rows or of slices; pairs of them are judged like columns.
        own: Which blocks are one own window.
        share: Of the levels, where other columns are judged by other own windows.

    Raises:
        ValueError: There are no columns, or they have unlike numbers of windows.
    """
    numbers = {len(column.windows) for column in columns}
    if len(numbers) != 1 or not numbers <= {1, 2}:
        raise ValueError(f"each column needs one window or two, got {sorted(numbers)}")
    rows_of = [column.rows(own) for column in columns]
    rows, count = int(max(found[-1] for found in rows_of)), len(own.ranges)
    if count < (needed := fewest_own(phases := len(set(own.phases)))):
        few = f"{count} own windows" + (f" of {phases} times of the week" if phases > 1 else "")
        few += f", and {needed} are needed" + (f": {own.why_few}" if own.why_few else "")
        return DriftVerdict("insufficient", few, rows, count, float(count), None, None, ())
    if rows < FEWEST_ROWS:
        few = f"{rows} rows, and {FEWEST_ROWS} are needed: take longer windows"
        return DriftVerdict("insufficient", few, rows, count, float(count), None, None, ())
    compared = [column.contrasts(own) for column in columns]
    meanings = [(at, meaning) for at, (_, found) in enumerate(compared) for meaning in found]
    if not meanings:
        return DriftVerdict("ok", "no column has more than one value", rows, count, float(count), None, None, ())
    compared_with = compare_columns(
        compared,
        own,
        rows=rows_of,
        slices=[column.slice for column in columns],
        drawn=[column.drawn for column in columns],
        alike=[column.alike for column in columns],
        share=share,
    )
    return _verdict(columns, meanings, compared_with, rows=rows, own=count)


def _verdict(
    columns: Sequence[ColumnCounts | PairCounts],
    meanings: Sequence[tuple[int, Contrast]],
    found: Comparison,
    *,
    rows: int,
    own: int,
) -> DriftVerdict:
    if found.one is None:
        most = float(found.effective.max(initial=0.0))
        worth_only = f"{np.floor(10 * most) / 10:g}"  # 9.97 is not yet 10
        few = f"{own} own windows, so alike one after the other that they are worth {worth_only}, and"
        reason = f"{few} {FEWEST_EFFECTIVE:.0f} are needed: take longer windows, or a longer reference"
        return DriftVerdict("insufficient", reason, rows, own, most, None, None, ())
    worth = float(found.effective[found.judged].min())
    leading = cast("Ranked", found.two if found.running else found.one)
    owners, flagged = np.array([at for at, _ in meanings]), found.flagged
    described = []
    for at, column in enumerate(columns):
        ours = np.flatnonzero(owners == at)
        if not len(ours):
            continue
        # What is told of a column is what led to the verdict, where something did.
        told = ours[flagged[ours]] if flagged[ours].any() else ours
        most = int(told[np.argmax(np.abs(leading.distances[told]))])
        if flagged[most]:  # a unit that slipped moves every shape, and people look for where values are
            most = next((int(one) for one in told if meanings[int(one)][1].kind == LOCATION), most)
        described.append(
            _described(
                column,
                meanings[most][1],
                distance=float(found.one.distances[most]),
                running=None if found.two is None else float(found.two.distances[most]),
                p=float(found.p[most]),
                flagged=bool(flagged[most]),
                unjudged=tuple(_name(column, meanings[int(one)][1]) for one in ours if not found.judged[one]),
            )
        )
    described.sort(key=_by_weight)
    counts = {column.name: column for column in columns}
    shown = [one for one in described if one.flagged][:MOST_HISTOGRAMS]
    described[: len(shown)] = [replace(one, histogram=_histogram(counts[one.column])) for one in shown]
    reason = _reason(described, found, own=own)
    bands = _band(found.one, warn_level, found.share), _band(found.two, alarm_level, found.share)
    return DriftVerdict(found.outcome, reason, rows, own, worth, *found.ranks, tuple(described), *bands)


def together(found: Sequence[DriftVerdict]) -> DriftVerdict:
    """Return one verdict of those on parts of the columns, each judged at its share of the levels: the worst.

    Only the columns of parts with that outcome lead to it. Its ranks are the lowest ones, and its bands the widest.
    """
    if len(found) == 1:
        return found[0]
    worst = max(found, key=lambda one: ("ok", "warn", "alarm").index(one.outcome)).outcome
    return DriftVerdict(
        worst,
        "; ".join(one.reason for one in found if one.outcome == worst),
        found[0].rows,
        min(one.own_windows for one in found),
        min(one.effective_windows for one in found),
        min((one.p_one for one in found if one.p_one is not None), default=None),
        min((one.p_two for one in found if one.p_two is not None), default=None),
        tuple(sorted((column for one in found for column in _leading(one, worst)), key=_by_weight)),
        max((one.band for one in found if one.band is not None), default=None),
        max((one.band_running for one in found if one.band_running is not None), default=None),
    )


def _leading(found: DriftVerdict, worst: Outcome) -> Sequence[ColumnDrift]:
    """Return the columns of a verdict, flagged where it is the worst one."""
    if found.outcome == worst:
        return found.columns
    return [replace(column, flagged=False, histogram=None) for column in found.columns]


def _by_weight(column: ColumnDrift) -> tuple[bool, float, float]:
    influence = -1.0 if column.influence is None else column.influence
    return not column.flagged, -influence, -abs(column.distance)


def _band(found: Ranked | None, level: Callable[[Ranked, float], float], share: float) -> float | None:
    """Return the distance that leads to a p-value of at most its level; None where none does."""
    distance = math.inf if found is None else found.critical(level(found, share))
    return distance if math.isfinite(distance) else None


def _described(
    column: ColumnCounts | PairCounts,
    meaning: Contrast,
    *,
    distance: float,
    running: float | None,
    p: float,
    flagged: bool,
    unjudged: tuple[str, ...],
) -> ColumnDrift:
    if isinstance(column, PairCounts):
        moved = "{} {:+.2f} -> {:+.2f}".format(meaning.kind, *column.before_and_after())
        told = (column.name, moved, distance, running, p, flagged, unjudged)
        return ColumnDrift(*told, 0.0, (0.0, 0.0), (), (), (), column.influence)
    before, after = column.blocks.sum(axis=0), column.windows[-1]
    nulls = int(column.nulls.sum()), int(column.window_nulls[-1])
    shares = nulls[0] / max(int(before.sum()) + nulls[0], 1), nulls[1] / max(int(after.sum()) + nulls[1], 1)
    named = not column.ordered
    quantiles, span, outside = _quantiles(before, after, column.edges) if column.ordered else ((), (), ())
    return ColumnDrift(
        column=column.name,
        moved=_name(column, meaning),
        distance=distance,
        distance_running=running,
        p=p,
        flagged=flagged,
        unjudged=unjudged,
        jensen_shannon=effects.jensen_shannon(np.append(before, nulls[0]), np.append(after, nulls[1])),
        nulls=shares,
        quantiles=quantiles,
        new=tuple(_new(column, at) for at in effects.new_bins(before, after)) if named else (),
        vanished=tuple(_label(column, at) for at in effects.vanished_bins(before, after)) if named else (),
        influence=column.influence,
        span=span,
        outside=outside,
    )


def _quantiles(before: Counts, after: Counts, edges: Floats | None) -> tuple[Any, Any, Any]:
    """Return what is told of the quantiles of an ordered column, before and after, of the span, and outside of it."""
    if edges is None:
        return (), (), ()
    finite = edges[np.isfinite(edges)]
    outside = effects.outside(before, edges), effects.outside(after, edges)
    found = effects.quantiles(before, edges), effects.quantiles(after, edges)
    known = effects.known(found[0], outside[0]), effects.known(found[1], outside[1])
    return known, (float(finite[0]), float(finite[-1])), outside


def _histogram(column: ColumnCounts | PairCounts) -> effects.Histogram | None:
    if isinstance(column, PairCounts):
        return None
    before, after = column.blocks.sum(axis=0), column.windows[-1]
    if not column.ordered:
        return effects.category_shares(before, after, tuple(_label(column, at) for at in range(len(before))))
    return None if column.edges is None else effects.histogram(before, after, column.edges)


def _name(column: ColumnCounts | PairCounts, meaning: Contrast) -> str:
    if meaning.kind not in {SHARE, ENDS} or isinstance(column, PairCounts):
        return meaning.kind
    if column.without is not None and column.without in meaning.bins:
        return RARER
    if column.ordered:
        return f"share of values {effects.seldom(column.windows[-1], column.edges, meaning.bins)}"
    return f"share of {_label(column, meaning.bins[0])}" if len(meaning.bins) == 1 else "share of all other values"


def _label(column: ColumnCounts, at: int) -> str:
    return column.labels[at] if column.labels else f"bin {at}"


def _new(column: ColumnCounts, at: int) -> str:
    return UNKNOWN if column.labels[at:] in {(OTHER,), (UNKNOWN,)} else _label(column, at)


def _reason(described: Sequence[ColumnDrift], found: Comparison, *, own: int) -> str:
    one, two = found.ranks
    moved = [column for column in described if column.flagged]
    told = [f"{column.column} ({in_words(column.moved)}, {column.distance:+.1f} sd)" for column in moved]
    names = some_of(told, 3, separator="; ")
    if found.running:
        reason = f"two windows running are unlike {own} own windows (p {two:.2g}): {names}"
    elif found.outcome == "alarm":
        reason = f"further off than {own} own windows explain (p {min(c.p for c in moved):.1g} after Holm): {names}"
    elif found.outcome == "warn":
        reason = f"unlike {own} own windows (p {one:.2g}), so far once: {names}"
    else:
        reason = f"like the {own} own windows of the reference (p {one:.2g})"
    left = some_of(sorted(column.column for column in described if column.unjudged), 3)
    return f"{reason}; judged for slips alone, since they move within the reference: {left}" if left else reason
