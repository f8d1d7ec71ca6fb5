"""Which columns of texts have categories that chance chose among many about as frequent. Pure.

A text is a category where training has enough rows of it. Of texts that are about as frequent as the rarest categories,
those that training has more of by luck are chosen: in any other rows there are fewer of them, and more of all others.
Own windows share that luck and traffic does not, so that the share of all others cannot be ranked among them. Let a
text's count be off by e, of variance D times its mean (D is 1 for independent rows), and t be the fewest rows that make
a category. Those within two standard deviations of it have up to ``E(e | e > 0) = sqrt(2 D t / pi)`` rows too many.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from raymlops.profiles.learn import PRIVATE_ROWS, SHARE

if TYPE_CHECKING:
    from raymlops.monitor.own_windows import OwnWindows
    from raymlops.profiles.profile import Blocks

Counts = npt.NDArray[np.int64]

_FULL = {2**power - 1 for power in range(4, 9)}
"""Numbers of categories of layouts that have no room for more: the commonest were chosen."""
_NOTICED = 0.2
"""Standard deviations of a window's share of all other texts that the rows too many may be."""


def rows_too_many(counts: Counts, *, dispersion: float = 1.0) -> float:
    """Return how many rows of a reference its categories have too many, at most, by having been chosen by their counts.

    Args:
        counts: The rows of each category, and last those of all other texts.
        dispersion: The variance of a count as a multiple of its mean.
    """
    categories, rows = counts[:-1], int(counts.sum())
    if not counts[-1] or not categories.any():
        return 0.0
    fewest = int(categories.min()) if len(categories) in _FULL else max(PRIVATE_ROWS, SHARE * rows)
    off = math.sqrt(dispersion * fewest)
    near = int((categories <= fewest + 2 * off).sum())
    return math.sqrt(2 / math.pi) * off * near


def chosen_by_chance(blocks: Blocks, own: OwnWindows) -> frozenset[str]:
    """Return the columns of texts of which the share of all others is lower in a reference than in other rows.

    They are those in which that matters for a window as long as its ``own`` ones.
    """
    return frozenset(
        series.column
        for series, cells in blocks.layout.placed()
        if series.measure == "category" and _is_noticed(blocks.counts[:, cells][:, series.bins], own)
    )


def _is_noticed(blocks: Counts, own: OwnWindows) -> bool:
    whole, windows = blocks.sum(axis=0), own.sums(blocks)
    windows = windows[windows.sum(axis=1) > 0]
    if not whole[-1] or len(windows) < 2:
        return False
    rows, others = windows.sum(axis=1), windows[:, -1]
    share = float(whole[-1] / whole.sum())
    varies = max(float((others / rows).std(ddof=1)), math.sqrt(share * (1 - share) / float(np.median(rows))))
    mean = windows[:, :-1].mean(axis=0)
    dispersion = max(1.0, float(windows[:, :-1].var(axis=0, ddof=1).sum() / max(mean.sum(), 1e-300)))
    return rows_too_many(whole, dispersion=dispersion) / float(whole.sum()) > _NOTICED * varies
