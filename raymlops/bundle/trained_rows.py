"""Which rows a model was trained on, in at most 512 KiB: the smallest hashes of them.

Pure. Hashes are uniform over 64 bits, so the rows whose hash lies under a threshold are a fair sample of all
rows, and the same sample whichever split they are in (a bottom-k sketch; Cohen and Kaplan, 2007).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterable

SKETCH_ROWS = 65_536

Hashes = npt.NDArray[np.uint64]


def sketch(row_hashes: npt.NDArray[Any]) -> Hashes:
    """Return the distinct hashes in order: all of them, or the ``SKETCH_ROWS`` smallest."""
    return np.unique(np.asarray(row_hashes, dtype=np.uint64))[:SKETCH_ROWS]


@dataclass(frozen=True)
class Overlap:
    """How many of some rows are training rows too, as a sketch of the training rows shows it.

    ``seen`` of the ``looked_at`` rows are in the sketch. Of a ``whole`` sketch these are all rows, otherwise those under
    its largest hash. Where the sketch is of a random ``hashed_share`` of the training rows, a row that is one of them is
    found with that probability.
    """

    seen: int
    looked_at: int
    hashed_share: float = 1.0
    whole: bool = True

    @property
    def share(self) -> float:
        """Return the share, 0 to 1; NaN without rows. It is exact of a whole sketch of all training rows."""
        return min(1.0, self.seen / self.looked_at / self.hashed_share) if self.looked_at else float("nan")

    @property
    def is_exact(self) -> bool:
        """Return whether nothing of it is chance."""
        return self.whole and self.hashed_share >= 1

    @property
    def error(self) -> float:
        """Return the standard error of the share: that of a binomial share, over ``hashed_share``."""
        if self.is_exact or not self.looked_at:
            return 0.0
        found = self.seen / self.looked_at
        return math.sqrt(found * (1 - found) / self.looked_at) / self.hashed_share

    def at_least(self, *, level: float = 0.01) -> float:
        """Return what the share is surely above, wrong with probability ``level``: Clopper and Pearson, 1934."""
        from scipy import special

        if self.is_exact or not self.seen:
            return self.share if self.seen else 0.0
        low = special.betaincinv(self.seen, self.looked_at - self.seen + 1, level)
        return min(1.0, float(low) / self.hashed_share)


def overlap(
    train_hashes: npt.NDArray[Any], test_hashes: Iterable[npt.NDArray[Any]], *, hashed_share: float = 1.0
) -> Overlap:
    """Return how many test rows are also training rows.

    ``train_hashes`` is a sketch, ``test_hashes`` has one hash for each row, in chunks, which are read one by one.
    """
    train = np.asarray(train_hashes, dtype=np.uint64)
    whole = train.size < SKETCH_ROWS
    seen = rows = 0
    for chunk in test_hashes:
        test = np.asarray(chunk, dtype=np.uint64)
        if not whole:
            test = test[test <= train.max()]
        seen += int(np.isin(test, train).sum())
        rows += test.size
    return Overlap(seen, rows, hashed_share, whole)
