"""Hashes of rows, which identify the data of a run, and find a row that two splits share.

Runs that began with an earlier release are resumed by comparing them: a hash may not change.
"""

from __future__ import annotations

from hashlib import blake2b, sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raymlops.column_types import TIME
from raymlops.profiles.drawn_rows import mixed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Array = npt.NDArray[Any]

_HASH_ELEMENTS = 1 << 22
"""Elements hashed at a time, which bounds the memory of a wide column to about 100 MB."""


def hash_columns(columns: Mapping[str, Array]) -> npt.NDArray[np.uint64]:
    """Return a 64-bit hash per row, the same for equal values whatever their width or the order of columns.

    Each value goes through the finaliser of SplitMix64 (Steele, Lea and Flood, 2014), salted by column and position.
    """
    rows = len(next(iter(columns.values())))
    total = np.zeros(rows, dtype=np.uint64)
    for name in sorted(columns):
        values = columns[name]
        salt = _hash(name.encode())
        flat = values.reshape(rows, -1)
        step = max(1, _HASH_ELEMENTS // max(1, flat.shape[1]))
        positions = mixed(np.arange(flat.shape[1], dtype=np.uint64) + salt)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            total[part] += mixed(_bits(flat[part]) ^ positions).sum(axis=1, dtype=np.uint64)
    return mixed(total)


def digest_of(chunks: Iterable[npt.NDArray[np.uint64]]) -> str:
    """Return the SHA-256 of rows' hashes."""
    digest = sha256()
    for chunk in chunks:
        digest.update(chunk.astype("<u8").tobytes())
    return digest.hexdigest()


def _bits(values: Array) -> npt.NDArray[np.uint64]:
    if values.dtype.kind == "M":
        values = values.astype(TIME).view(np.int64)
    if values.dtype != object:
        # Adding zero makes -0.0 and 0.0 one value; every NaN gets the same bits.
        numbers = values.astype(np.float64) + 0.0
        numbers[np.isnan(numbers)] = np.nan
        bits = numbers.view(np.uint64)
        if values.dtype in (np.int64, np.uint64):
            inexact = _rounded(values, numbers)  # such integers have bits of their own: ids beyond 2**53 differ
            bits[inexact] = values[inexact].astype(np.uint64)
        return bits
    flat = values.ravel().tolist()
    if any(issubclass(kind, np.ndarray) for kind in set(map(type, flat))):
        flat = [(value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value for value in flat]
    known = {value: _hash(value if isinstance(value, bytes) else repr(value).encode()) for value in dict.fromkeys(flat)}
    return np.fromiter(map(known.__getitem__, flat), np.uint64, len(flat)).reshape(values.shape)


def _rounded(integers: Array, numbers: Array) -> npt.NDArray[np.bool_]:
    """Return which integers of 64 bits float64 cannot hold."""
    beyond = numbers >= float(np.iinfo(integers.dtype).max)  # the next power of two, which no cast may get back
    rounded: npt.NDArray[np.bool_] = beyond | (np.where(beyond, 0.0, numbers).astype(integers.dtype) != integers)
    return rounded


def _hash(data: bytes) -> np.uint64:
    return np.uint64(int.from_bytes(blake2b(data, digest_size=8).digest(), "little"))
