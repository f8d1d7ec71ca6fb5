"""Changes between columns: the correlation of two of them in windows, whatever each of them does on its own. Pure.

A pair has one contrast, Fisher's z: ``atanh(r)`` of the correlation r of its scores, whose variance for independent
rows is about 1 / rows whatever r is: Fisher, "Frequency distribution of the values of the correlation coefficient",
Biometrika 10 (1915). How much it varies from window to window, where rows depend on each other, own windows say. It
comes from sums of products, which are in every profile; no row is read. A classifier between the rows of two windows
(Lopez-Paz and Oquab, "Revisiting classifier two-sample tests", ICLR 2017) has no more power, and alarms without any
change unless whole windows are permuted: see ``tests/benchmarks/drift_between_columns.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from raymlops.monitor.contrasts import CORRELATION, Contrast

if TYPE_CHECKING:
    from raymlops.monitor.own_windows import OwnWindows

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_NEARLY_ONE = 0.999
"""A correlation beyond is this: what it is of is the same in both columns."""


@dataclass(frozen=True)
class PairCounts:
    """Sums of the scores x and y of a pair of columns: of 1, x, y, x^2, y^2 and x y, of shape (..., 6).

    Attributes:
        name: Of the pair.
        blocks: Of consecutive blocks of the reference.
        windows: Of the window of traffic, after those of the window before it, if there is one.
        influence: How much the model's output depends on that column of which it depends less; None where nobody knows.
        drawn: As of ``ColumnCounts``.
    """

    name: str
    blocks: Counts
    windows: Counts
    influence: float | None = None
    drawn: float = 0.0
    slice: ClassVar[str] = ""
    alike: ClassVar[tuple[float, ...]] = ()

    def rows(self, own: OwnWindows) -> Counts:
        """Return the rows of own windows and then of those of traffic."""
        return np.concatenate([own.sums(self.blocks[:, 0]), self.windows[:, 0]])

    def contrasts(self, own: OwnWindows) -> tuple[Floats, tuple[Contrast, ...]]:
        """Return Fisher's z of own windows and then of those of traffic, of shape (windows, 1), and what it is.

        There is none where a column has one value in every window. A window in which it has one value has the mean of
        all windows, and so says nothing.
        """
        found = correlations(np.concatenate([own.sums(self.blocks), self.windows]))
        known = np.isfinite(found)
        if not known.any():
            return np.zeros((len(found), 0)), ()
        z = np.arctanh(np.clip(found, -_NEARLY_ONE, _NEARLY_ONE))
        return np.where(known, z, z[known].mean())[:, None], (Contrast(CORRELATION),)

    def before_and_after(self) -> tuple[float, float]:
        """Return the correlation in the whole reference and in the window."""
        before, after = correlations(np.stack([self.blocks.sum(axis=0), self.windows[-1]])).tolist()
        return before, after


def correlations(sums: Counts) -> Floats:
    """Return the correlation by sums of shape (windows, 6); NaN where a column has one value."""
    rows = np.maximum(sums[:, :1], 1)
    x, y, xx, yy, xy = (sums[:, 1:] / rows).T
    squared = (xx - x * x) * (yy - y * y)
    return np.where(squared > 1e-12, (xy - x * y) / np.sqrt(np.maximum(squared, 1e-12)), np.nan)
