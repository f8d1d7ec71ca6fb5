"""Draw some rows of a table by a hash of their number: in order, spread evenly, and the same in every process.

Every n-th row would be no sample. Tables have periods of their own, as 40 shops in turn for each hour, and n often has
a factor in common with one: whole shops would then be left out, and others be taken as often again. So one row of each
stretch of neighbours is drawn, at a place that follows no pattern.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""The step of SplitMix64 from one state to the next, which keeps the hashes of consecutive numbers apart."""
_STREAMS = 64


def drawn(rows: int, *, most: int) -> Numbers:
    """Return the numbers of min(``rows``, ``most``) rows, rising: one of each of as many stretches, about as long."""
    number = min(rows, most)
    ends = np.arange(number + 1) * rows // max(1, number)
    return ends[:-1] + (_hashed(np.arange(number)) % np.diff(ends).astype(np.uint64)).astype(np.int64)


def drawn_of(stretches: Numbers, *, halvings: int) -> Numbers:
    """Return the number of the row that is drawn of each stretch of 2^``halvings`` rows.

    It is one of the two that are drawn of the halves of the stretch. So what is drawn of long stretches is part of what
    is drawn of short ones, whatever the number of rows will be.
    """
    for level in range(halvings, 0, -1):
        half = _hashed(stretches, stream=level) >> np.uint64(63)
        stretches = 2 * stretches + half.astype(np.int64)
    return stretches


def mixed(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return what the finaliser of SplitMix64 (Steele, Lea and Flood, 2014) makes of each number."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _hashed(numbers: Numbers, *, stream: int = 0) -> npt.NDArray[np.uint64]:
    """Return a hash of each number, another one in each of 64 streams."""
    return mixed((numbers * _STREAMS + (stream + 1)).astype(np.uint64) * _GOLDEN)
