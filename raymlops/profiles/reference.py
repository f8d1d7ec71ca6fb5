"""The reference of a table: its layout, its profile, and profiles of its consecutive rows, of all and of slices.

Owns which rows are consecutive, and how many blocks and bins there are: a reference of any number of columns takes at
most ``MAX_CELLS`` counts, slices included.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from raymlops.profiles.count import Counter
from raymlops.profiles.layout import ROWS
from raymlops.profiles.learn import BINS, PRIVATE_ROWS, Learner, edges_of
from raymlops.profiles.measures import measured
from raymlops.profiles.profile import Blocks, Profile
from raymlops.profiles.slices import Slice, parts_of
from raymlops.profiles.slots import bounds_of, firsts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy.typing as npt

    from raymlops.profiles.layout import Cells, Layout

RowOrder = Literal["ordered", "independent"]
MOST_BLOCKS, FEWER_BLOCKS = 512, 256
MAX_CELLS = 1 << 24
"""Counts of the blocks of all rows and of all slices together: 128 MiB in memory."""
_LEAST_BINS = 16
_TIME = "\0time"


class Chunk(NamedTuple):
    """Some rows of a table, in its order."""

    columns: Mapping[str, Any]
    rows: int
    times: npt.NDArray[Any] | None = None
    """When each of them arose, as datetime64 or as seconds since 1970."""
    chosen_by: Mapping[str, Any] | None = None
    """Columns by which rows are in a slice; None for ``columns``."""


@dataclass(frozen=True, eq=False)
class Reference:
    """What a table was: ``blocks`` is None where its rows have no order, and ``note`` says why."""

    profile: Profile
    blocks: Blocks | None = None
    note: str = ""
    independent: bool = False
    """Whether the recipe says that rows are independent draws."""
    slices: Mapping[Slice, Profile] = field(default_factory=dict)
    """Profiles of some of the rows, on the same layout."""
    slice_blocks: Mapping[Slice, Blocks] = field(default_factory=dict)
    """Of each slice, where the whole has blocks, its rows in as many, cut at the same places.

    Each has no rows, or at least ``PRIVATE_ROWS``: fewer are put together with those of the next blocks, in one.
    """
    few: Mapping[Slice, int | None] = field(default_factory=dict)
    """Slices that were asked for and have fewer than ``PRIVATE_ROWS``, with how many; None as read: no file tells."""
    influence: Mapping[str, float] = field(default_factory=dict)
    """How much the model's answers depend on each column, from 0 to 1, where that was measured."""

    @property
    def layout(self) -> Layout:
        """Return the layout of its columns."""
        return self.profile.layout


def reference_of(
    chunks: Callable[[], Iterable[Chunk]],
    *,
    rows: int,
    row_order: RowOrder | None = None,
    slices: Sequence[Slice] = (),
    scored: Sequence[str] = (),
) -> Reference:
    """Return the reference of ``rows`` rows, in two passes over ``chunks``: one for the layout, one that counts.

    Blocks are of the rows in order of their times, or else of the rows as they come, where they are in order or
    independent. Those of times begin and end where windows of traffic do; of independent rows they have about equally
    many. Each has at least ``PRIVATE_ROWS``, and so has each slice; one of a time that has no rows has none. How
    columns go together is counted of those that are ``scored``, the first ones of too many.
    """
    slices = [*dict.fromkeys(slices)]
    in_order, independent = row_order is not None, row_order == "independent"
    learner = Learner()
    for chunk in chunks():
        timed = {} if chunk.times is None else {_TIME: _seconds(chunk.times)}
        learner.add({**chunk.columns, **timed}, rows=chunk.rows)
    times = learner.values(_TIME)
    has_times = bool(np.isfinite(times).any())
    slotted = has_times and not independent
    # Between any two blocks of enough rows there may be one without rows, as a night.
    most = min(MOST_BLOCKS, rows * (2 if slotted else 1) // PRIVATE_ROWS) if has_times or in_order else 0
    layout, most = _fitting(learner, most, slices=len(slices), scored=scored)
    edges = np.zeros(0)
    if slotted:
        edges = bounds_of(times, rows=rows, most=most)
    elif has_times and most > 1:
        # Edges are of a sample: those of blocks of twice as many rows leave few that are too small.
        edges = edges_of(times, bins=min(most, max(2, rows // (2 * PRIVATE_ROWS))), own=False)
    blocks = len(edges) - 1 if len(edges) else 0 if has_times else most
    if blocks < 2:
        blocks = 0
    # After the blocks, rows in none.
    counter, *parts = (Counter(layout, windows=blocks + 1) for _ in range(1 + len(slices)))
    start = 0
    for chunk in chunks():
        window: Cells | int = blocks
        if blocks and chunk.times is not None:
            moments = _seconds(chunk.times)
            within = np.clip(np.searchsorted(edges, moments, side="right") - 1, 0, blocks - 1)
            window = np.where(np.isnan(moments), blocks, within)
        elif blocks and not has_times:
            window = np.minimum(np.arange(start, start + chunk.rows) * blocks // rows, blocks - 1)
        counter.add(chunk.columns, rows=chunk.rows, window=window)
        for found, columns, numbers in parts_of(slices, chunk.columns, chunk.chosen_by or chunk.columns):
            where = window[numbers] if isinstance(window, np.ndarray) else window
            parts[slices.index(found)].add(columns, rows=len(numbers), window=where)
        start += chunk.rows
    # So few rows would show who they are.
    sliced = dict(zip(slices, (part.counts for part in parts), strict=True))
    few: dict[Slice, int | None] = {
        found: number for found, counts in sliced.items() if (number := int(counts[:, ROWS].sum())) < PRIVATE_ROWS
    }
    sliced = {found: counts for found, counts in sliced.items() if found not in few}
    of_blocks = counter.counts[:blocks, ROWS]
    firsts = firsts_of(of_blocks, edges[:-1]).tolist() if slotted else _firsts(of_blocks)
    if len(firsts) < 2:
        kept = {found: Profile(layout, counts.sum(axis=0)) for found, counts in sliced.items()}
        note = _why(rows, ordered=has_times or in_order)
        return Reference(counter.profile(), None, note, independent, kept, few=few)
    bounds = np.append(edges[firsts], edges[-1]) if has_times else None

    def in_blocks(counts: Cells) -> Blocks:
        found = counts[:blocks]
        return Blocks(layout, found if len(firsts) == blocks else np.add.reduceat(found, firsts), bounds)

    slice_blocks = {found: _grouped(in_blocks(counts)) for found, counts in sliced.items()}
    slice_blocks = {found: part for found, part in slice_blocks.items() if part.rows.any()}
    # Without rows that have no time: so few of a slice as these may be are in no count of their own.
    kept = {found: Profile(layout, part.counts.sum(axis=0)) for found, part in slice_blocks.items()}
    few |= {found: int(counts[:blocks, ROWS].sum()) for found, counts in sliced.items() if found not in kept}
    return Reference(counter.profile(), in_blocks(counter.counts), "", independent, kept, slice_blocks, few)


def _grouped(blocks: Blocks) -> Blocks:
    """Return as many blocks, none of which has rows, but fewer than ``PRIVATE_ROWS``.

    Consecutive blocks are put together until they have so many; all of their rows are counted in the block that has the
    middle one of them, and the others are empty. The last ones that stay below that are in none.
    """
    firsts = _firsts(blocks.rows)
    counts = np.zeros_like(blocks.counts)
    for start, stop in zip(firsts, [*firsts[1:], len(blocks)], strict=False):
        running = np.cumsum(blocks.rows[start:stop])
        counts[start + np.searchsorted(running, running[-1] / 2)] = blocks.counts[start:stop].sum(axis=0)
    return Blocks(blocks.layout, counts, blocks.times)


def _firsts(rows: Cells) -> list[int]:
    """Return the first of each group of blocks that together have ``PRIVATE_ROWS`` rows, in order."""
    firsts, total = list[int](), PRIVATE_ROWS
    for at, more in enumerate(rows.tolist()):
        if total >= PRIVATE_ROWS:
            firsts.append(at)
            total = 0
        total += more
    return firsts if total >= PRIVATE_ROWS else firsts[:-1]


def _seconds(times: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    (seconds,) = measured(np.asarray(times)).values()
    return np.asarray(seconds, np.float64)


def _why(rows: int, *, ordered: bool) -> str:
    if ordered:
        return f"{rows} rows are too few for two blocks of {PRIVATE_ROWS}, or nearly all have one time"
    return (
        "the recipe does not say when a row arose (row_times), nor that rows are in order (row_order): what is normal "
        "from one window to the next is unknown, so that drift cannot be told from chance"
    )


def _fitting(learner: Learner, blocks: int, *, slices: int = 0, scored: Sequence[str] = ()) -> tuple[Layout, int]:
    """Return a layout and a number of blocks that together, with each slice, have at most ``MAX_CELLS`` counts.

    Where there are slices, bins are given up before blocks: those of a year must be shorter than a day, or no day of it
    is an own window.
    """
    bins, more, kept = BINS, 1 + slices, MOST_BLOCKS if slices else FEWER_BLOCKS
    while (min(blocks, kept) + 1) * more * len(learner) * bins > MAX_CELLS and bins > _LEAST_BINS:
        bins //= 2
    layout = learner.layout(bins=bins, without=[_TIME], scored=scored)
    while (blocks + 1) * more * layout.size > MAX_CELLS and (blocks > kept or bins > _LEAST_BINS or blocks > 1):
        if blocks > kept or bins <= _LEAST_BINS:
            blocks //= 2
        else:
            bins //= 2
            layout = learner.layout(bins=bins, without=[_TIME], scored=scored)
    return layout, blocks
