"""Columns whose windows have unlike numbers of rows, as those of slices and of a sampled log, compared together. Pure.

The variance of a mean of independent rows is 1 / rows, and falls more slowly where rows depend on each other. So the
least variance that is believed is that of a column's usual rows, the median of its own windows; a window that has fewer
counts for less, whether it is judged or not; and variances are drawn towards those of the same slice alone. Ranks are
of the largest distance of all: columns of slices are further contrasts, and no further chance of a false alarm.

Windows of a sample vary by what was drawn as well, which own windows of all rows do not: where traffic has a timetable
these hardly vary at all, and any sample of it is unlike them. Each contrast is a mean of unit variance, so that a
sample adds to it a normal error of a known variance. Own windows get one as large, always the same: they are then what
samples of them would have shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from raymlops.monitor.conformal import Own, within
from raymlops.monitor.outcome import Comparison, compare, floors, kind_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.monitor.contrasts import Contrast
    from raymlops.monitor.own_windows import OwnWindows

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def compare_columns(
    columns: Sequence[tuple[Floats, Sequence[Contrast]]],
    own: OwnWindows,
    *,
    rows: Sequence[Counts],
    slices: Sequence[str],
    drawn: Sequence[float],
    alike: Sequence[Sequence[float]] = (),
    share: float = 1.0,
) -> Comparison:
    """Compare the windows of traffic with own ones, in all contrasts of all columns.

    Args:
        columns: The contrasts of own windows and then of those of traffic, and what they are.
        own: Own windows.
        rows: Of these windows in each column.
        slices: The slice of each column, empty for all rows.
        drawn: What a sample adds to the variances of each column's last window.
        alike: What requests of several rows add to those of its windows of traffic, in variances of independent rows.
        share: Of the levels.
    """
    count, groups = len(own.ranges), {name: at for at, name in enumerate(dict.fromkeys(slices))}
    values, kinds, least, rng = [], [], [], np.random.default_rng(0)
    requests = alike or [()] * len(columns)
    for (found, meanings), each, name, more, extra in zip(columns, rows, slices, drawn, requests, strict=True):
        if more:
            found, each = sampled(found, each, count, more, rng)  # noqa: PLW2901
        usual = max(float(np.median(each[:count])), 1.0)
        phases = np.array([*own.phases, *own.phase[count - len(each) :]])
        if any(extra):
            varies = within(found[:count], phases[:count]).var(axis=0).mean() if found.size else 0.0
            worth = max(1.0, float(varies) * usual)
            each = np.append(each[:count], each[count:] * worth / (worth + np.array(extra)))  # noqa: PLW2901
        values.append(steadied(found, each, phases, usual=usual))
        kinds.append(kind_numbers([meaning.kind for meaning in meanings], group=groups[name]))
        least.append(floors(kinds[-1], usual))
    together = np.hstack(values)
    phases = np.array(own.phases, dtype=np.int64)
    slots = None if own.slots is None else np.array(own.slots, dtype=np.int64)
    owners = np.repeat(np.arange(len(kinds)), [len(each) for each in kinds])
    reference = Own(
        together[:count],
        np.concatenate(kinds),
        np.concatenate(least),
        phases,
        lag=own.lag,
        slots=slots,
        columns=owners,
    )
    return compare(reference, together[count:], phases=own.phase, share=share)


def sampled(values: Floats, rows: Counts, own: int, drawn: float, rng: np.random.Generator) -> tuple[Floats, Counts]:
    """Return contrasts and rows of windows as if the own ones, the first, were samples too."""
    found, worth = values.copy(), rows.copy()
    found[:own] += rng.standard_normal(found[:own].shape) * np.sqrt(drawn)
    worth[:own] = np.rint(rows[:own] / (1 + rows[:own] * drawn))
    return found, worth


def steadied(values: Floats, rows: Counts, phases: Counts, *, usual: float) -> Floats:
    """Return contrasts of windows, those of fewer than ``usual`` rows as near to others as if they had so many.

    Their variance is about 1 / rows: a window of a slice with few rows would say more of how much windows vary than all
    others, and what is furthest off in any column ranks all of them. ``values`` are of shape (windows, contrasts),
    ``rows`` and ``phases`` of each window; those that are judged are among them, so that all are drawn alike.
    """
    few = rows < usual
    if not few.any():
        return values
    found = values.copy()
    for phase in np.unique(phases[few]):
        ours = phases == phase
        mean = rows[ours] @ values[ours] / max(int(rows[ours].sum()), 1)
        found[ours] = mean + (values[ours] - mean) * np.sqrt(np.minimum(rows[ours] / usual, 1.0))[:, None]
    return found
