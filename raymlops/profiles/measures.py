"""What is counted of a column: its numbers, categories or times, or the lengths and moments of what is larger.

Owns what a column is, by its array, and the measures it has. A column is a numpy array, an Arrow array, or a mapping of
measures that somebody else has taken. Knows nothing of bins.

============ ============================================= ===================================
column        measures                                      values
============ ============================================= ===================================
numbers, bool ``number``                                    float64
times         ``time``                                      float64, seconds since 1970
text          ``category``, ``length``, ``distinct``        Arrow string; characters; registers
bytes         ``size``                                      float64, bytes
tensors       ``mean``, ``deviation``, ``size`` if it varies float64, over the elements of a row
vectors       those, and ``category``                       ``argmax I``, the place of the largest of up to 32 elements
============ ============================================= ===================================

A missing value is NaN, null, or the register -1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raymlops.profiles.distinct import registers

if TYPE_CHECKING:
    from collections.abc import Collection

Measure = Literal["number", "time", "category", "length", "distinct", "size", "mean", "deviation"]
Measured = Mapping[Measure, Any]
"""Arrays by measure."""
Array = npt.NDArray[Any]

ALL: frozenset[Measure] = frozenset(
    {"number", "time", "category", "length", "distinct", "size", "mean", "deviation"},
)
_ELEMENTS = 1 << 20
"""Of tensors, converted at a time."""
_PLACES = pa.array([f"argmax {place}" for place in range(32)])
"""Of the largest element of a vector: of the probabilities of classes, whose mean is always the same, the answer."""


def measured(values: Any, wanted: Collection[Measure] = ALL) -> Measured:
    """Return the wanted measures of a column that it has, each an array of n values."""
    if isinstance(values, Mapping):
        return values
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        return _of_arrow(values, wanted)
    array = np.asarray(values)
    if array.dtype.kind == "O" or array.dtype.kind in "US":
        return _of_objects(array, wanted)
    if array.dtype.kind == "M":
        return {"time": _seconds(array)}
    if array.ndim > 1:
        return _moments_of_rows(array.reshape(len(array), -1), wanted, vectors=array.ndim == 2)
    return {"number": array.astype(np.float64, copy=False)}


def _of_objects(array: Array, wanted: Collection[Measure]) -> Measured:
    if array.dtype.kind in "US":
        array = array.astype(object)
    first = next((value for value in array if value is not None), None)
    if isinstance(first, np.ndarray | list | tuple):
        rows = [np.zeros(0) if value is None else np.asarray(value, np.float64).ravel() for value in array]
        return _moments(np.concatenate(rows), np.array([row.size for row in rows]), wanted)
    if isinstance(first, bytes):
        return {"size": np.array([np.nan if value is None else float(len(value)) for value in array])}
    if first is None or isinstance(first, str):
        return _of_text(_texts(array), wanted)
    try:
        return {"number": np.array([np.nan if value is None else float(value) for value in array])}
    except (TypeError, ValueError, OverflowError):
        return _of_text(_texts(array), wanted)


def _texts(array: Array) -> pa.Array:
    """Return objects as text; those of other types by their ``str``."""
    try:
        return pa.array(array, pa.string(), from_pandas=True)
    except (pa.ArrowException, UnicodeEncodeError, TypeError):
        texts = (None if value is None or value != value else str(value) for value in array)  # noqa: PLR0124 - NaN
        return pa.array([text if text is None else text.encode("utf-8", "replace").decode() for text in texts])


def _of_text(texts: pa.Array, wanted: Collection[Measure]) -> Measured:
    found: dict[Measure, Any] = {"category": texts}
    if "length" in wanted:
        found["length"] = _floats(pc.utf8_length(texts))
    if "distinct" in wanted:
        found["distinct"] = registers(texts)
    return found


def _of_arrow(array: pa.Array, wanted: Collection[Measure]) -> Measured:
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _of_arrow(array.dictionary_decode(), wanted)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return {"time": _floats(pc.cast(pc.cast(array, pa.timestamp("us"), safe=False), pa.int64())) / 1e6}
    if pa.types.is_boolean(kind):
        return {"number": _floats(pc.cast(array, pa.int8()))}
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return {"number": _floats(array)}
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return {"size": _floats(pc.binary_length(array))}
    if _is_list(kind):
        bounds, vectors = np.arange(len(array) + 1), not _is_list(kind.value_type)
        while _is_list(array.type):
            lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
            bounds = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[bounds]
            array = array.flatten()
        return _moments(_floats(array), np.diff(bounds), wanted, vectors=vectors)
    return _of_text(pc.cast(array, pa.string()), wanted)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _floats(array: pa.Array) -> npt.NDArray[np.float64]:
    return np.asarray(array.to_numpy(zero_copy_only=False), np.float64)  # null is NaN


def _seconds(times: Array) -> npt.NDArray[np.float64]:
    micros = times.astype("datetime64[us]")
    return np.where(np.isnat(micros), np.nan, micros.astype(np.int64) / 1e6)


def _moments_of_rows(rows: Array, wanted: Collection[Measure], *, vectors: bool) -> Measured:
    found: dict[Measure, Any] = {}
    if vectors and "category" in wanted and 1 < rows.shape[1] <= len(_PLACES):
        found["category"] = _largest(rows)
    if not {"mean", "deviation"} & set(wanted):
        return found
    mean, deviation = np.empty(len(rows)), np.empty(len(rows))
    step = max(1, _ELEMENTS // max(1, rows.shape[1]))
    with np.errstate(all="ignore"):
        for start in range(0, len(rows), step):
            part = rows[start : start + step].astype(np.float64)
            if part.shape[1]:
                mean[start : start + step], deviation[start : start + step] = part.mean(axis=1), part.std(axis=1)
            else:
                mean[start : start + step] = deviation[start : start + step] = np.nan
    return {**found, "mean": mean, "deviation": deviation}


def _largest(rows: Array) -> pa.Array:
    """Return the place of the largest element of each row; null where one is NaN."""
    return _PLACES.take(pa.array(np.argmax(rows, axis=1), mask=np.isnan(rows).any(axis=1)))


def _moments(
    flat: npt.NDArray[np.float64],
    sizes: npt.NDArray[np.int64],
    wanted: Collection[Measure],
    *,
    vectors: bool = False,
) -> Measured:
    """Return the measures of tensors of different sizes from their elements, one tensor after the other.

    Those of one size are summed as an array of them is: the mean of three shares is a third or the number beside it, by
    the order of summation.
    """
    mean, deviation = np.full(len(sizes), np.nan), np.full(len(sizes), np.nan)
    some = sizes > 0
    if some.any() and sizes[some].min() == sizes.max():
        found = dict(_moments_of_rows(flat.reshape(-1, sizes.max()), wanted, vectors=vectors))
        places = np.where(some, np.cumsum(some) - 1, 0)
        spread = {
            measure: values.take(pa.array(places, mask=~some))
            if measure == "category"
            else np.where(some, values[places], np.nan)
            for measure, values in found.items()
        }
        return {**spread, "size": sizes.astype(np.float64)}
    if some.any():
        starts = (np.cumsum(sizes) - sizes)[some]
        with np.errstate(all="ignore"):
            mean[some] = np.add.reduceat(flat, starts) / sizes[some]
            off = flat - np.repeat(mean[some], sizes[some])
            deviation[some] = np.sqrt(np.add.reduceat(off * off, starts) / sizes[some])
    return {"mean": mean, "deviation": deviation, "size": sizes.astype(np.float64)}
