"""Which rows a model was trained on, in at most 512 KiB: the smallest hashes of them.

Pure. Hashes are uniform over 64 bits, so the rows whose hash lies under a threshold are a fair sample of all
rows, and the same sample whichever split they are in (a bottom-k sketch; Cohen and Kaplan, 2007).
"""

from __future__ import annotations

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


def overlap(
    train_hashes: npt.NDArray[Any], test_hashes: Iterable[npt.NDArray[Any]], *, hashed_share: float = 1.0
) -> float:
    """Return the share of test rows that are also training rows, 0 to 1; NaN without test rows.

    ``train_hashes`` is a sketch, ``test_hashes`` has one hash for each row, in chunks, which are read one by one. Exact
    when fewer than ``SKETCH_ROWS`` distinct rows were trained on. Otherwise an estimate over the test rows under the
    sketch's largest hash; with n such rows its standard error is at most 0.5 / sqrt(n). Where the sketch is of a random
    ``hashed_share`` s of the training rows, a test row that is one of them is found with probability s: what is found
    is divided by s, with a standard error of at most sqrt(overlap / (s * n)).
    """
    train = np.asarray(train_hashes, dtype=np.uint64)
    seen = rows = 0
    for chunk in test_hashes:
        test = np.asarray(chunk, dtype=np.uint64)
        if train.size >= SKETCH_ROWS:
            test = test[test <= train.max()]
        seen += int(np.isin(test, train).sum())
        rows += test.size
    return min(1.0, seen / rows / hashed_share) if rows else float("nan")
