"""Which rows there are, by their hashes, in at most 16 MiB: the smallest distinct hashes, each with its rows. Pure.

Hashes are uniform over 64 bits: the rows whose hash is at most the largest one kept are a fair sample of the distinct
rows, and the same sample in whichever table they are (a bottom-k sketch; Cohen and Kaplan, 2007). Exact where fewer
distinct rows were added than are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

KEPT = 1 << 20


class DistinctRows:
    """The rows of a table that were added, in any order."""

    def __init__(self, *, kept: int = KEPT) -> None:
        self._kept = kept
        self._hashes: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._rows: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self.added = 0

    def add(self, hashes: npt.NDArray[np.uint64]) -> None:
        """Add rows by their hashes."""
        self.added += len(hashes)
        if not self.is_exact:
            hashes = hashes[hashes <= self._hashes[-1]]
        new, rows = np.unique(hashes, return_counts=True)
        every = np.concatenate([self._hashes, new])
        found, places = np.unique(every, return_inverse=True)
        counts = np.bincount(places, weights=np.concatenate([self._rows, rows]), minlength=len(found))
        self._hashes, self._rows = found[: self._kept], counts[: self._kept].astype(np.int64)

    @property
    def is_exact(self) -> bool:
        """Return whether every distinct row is kept."""
        return len(self._hashes) < self._kept

    @property
    def repeated(self) -> float:
        """Return the share of rows that are there more than once."""
        rows = int(self._rows.sum())
        return float(self._rows[self._rows > 1].sum()) / rows if rows else 0.0

    def share_in(self, other: DistinctRows) -> float:
        """Return the share of these rows that ``other`` has too.

        An estimate where not both are exact: of n rows below what both keep, within 0.5 / sqrt(n).
        """
        until = min((one._hashes[-1] for one in (self, other) if not one.is_exact), default=None)  # noqa: SLF001
        below = np.ones(len(self._hashes), np.bool_) if until is None else self._hashes <= until
        rows = self._rows[below]
        both = np.isin(self._hashes[below], other._hashes, assume_unique=True)
        return float(rows[both].sum()) / float(rows.sum()) if rows.sum() else 0.0

    def equals(self, other: DistinctRows) -> bool:
        """Return whether both are the same rows, each as often, in whatever order; only known where both are exact."""
        return (
            self.is_exact
            and other.is_exact
            and np.array_equal(self._hashes, other._hashes)
            and np.array_equal(self._rows, other._rows)
        )
