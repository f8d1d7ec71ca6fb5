"""How many distinct texts there are, from registers that add up.

A multiresolution bitmap (Estan, Varghese and Fisk, 2003) that counts: a text's hash chooses a level, the first with
probability 1/2, the next with 1/4, and one of 64 registers of it. Texts are counted there, so that registers of two
sets add; a register that is not 0 is the bitmap's bit. The estimate is that of maximum likelihood; its standard error
is about 9%, from a hundred to ten million texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

LEVELS, WIDTH = 18, 64
REGISTERS = LEVELS * WIDTH
_MOST = 1e12


def registers(texts: pa.Array) -> npt.NDArray[np.int64]:
    """Return the register of each text; -1 where it is missing."""
    from pandas.util import hash_array

    hashes = hash_array(texts.fill_null("").to_numpy(zero_copy_only=False).astype(object), categorize=False)
    found = _register(hashes)
    if texts.null_count:
        found[texts.is_null().to_numpy(zero_copy_only=False)] = -1
    return found


def _register(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    rest = hashes >> np.uint64(6)
    lowest = rest & (~rest + np.uint64(1))
    level = np.log2(np.maximum(lowest, np.uint64(1)).astype(np.float64)).astype(np.int64)
    level[rest == 0] = LEVELS - 1
    return np.minimum(level, LEVELS - 1) * WIDTH + (hashes & np.uint64(WIDTH - 1)).astype(np.int64)


def estimate(counts: npt.NDArray[np.int64]) -> float:
    """Return about how many distinct texts filled the registers; infinity where all of them are full."""
    full = (counts.reshape(LEVELS, WIDTH) > 0).sum(axis=1)
    if not full.any():
        return 0.0
    if full.sum() == REGISTERS:
        return float("inf")
    share = 0.5 ** np.minimum(np.arange(1, LEVELS + 1), LEVELS - 1) / WIDTH
    empty = float(((WIDTH - full) * share).sum())
    low, high = 0.0, np.log(_MOST)
    for _ in range(60):
        middle = (low + high) / 2
        # The derivative of the log-likelihood: full registers ask for more texts, empty ones for fewer.
        rising = float((full * share / np.expm1(np.minimum(np.exp(middle) * share, 700.0))).sum())
        low, high = (middle, high) if rising > empty else (low, middle)
    return float(np.exp(low))
