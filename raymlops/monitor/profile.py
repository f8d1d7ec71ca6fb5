"""The reference profile: what columns looked like when a model was trained, kept in its bundle.

Owns which summary a column gets. It is what later windows of requests are compared with, so it holds no rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raymlops.monitor.stats import TOP, category_summary, numeric_summary

if TYPE_CHECKING:
    from raymlops.arrays import Columns

VERSION = 1

_MAX_ELEMENTS = 1_000_000
_PROBE_ROWS = 2_000


def profile(columns: Columns) -> dict[str, Any]:
    """Return a profile of columns of n rows as JSON data: ``{"version", "rows", "columns": {name: summary}}``.

    Text, booleans and integers of at most ``TOP`` different values are counted as categories; other numbers
    get moments, quantiles and a histogram; tensors are summarised over all their elements (an even sample of
    at most a million), those of variable length with the number of elements of each row as ``lengths``. Of bytes only
    ``lengths`` are summarised. Times are seconds since 1970, of a kind of their own: that they move on is no drift.
    """
    rows = len(next(iter(columns.values()))) if columns else 0
    return {"version": VERSION, "rows": rows, "columns": {name: _summary(array) for name, array in columns.items()}}


def _summary(values: npt.NDArray[Any]) -> dict[str, Any]:
    array = np.asarray(values)
    if array.dtype == object and any(isinstance(value, np.ndarray) for value in array[:1]):
        lengths = np.array([value.size for value in array])
        flat = np.concatenate([np.ravel(value) for value in array])
        return _tensor_summary(flat) | {"lengths": numeric_summary(lengths)}
    if array.ndim > 1:
        return _tensor_summary(array.ravel()) | {"shape": list(array.shape[1:])}
    if array.dtype.kind == "M":
        seconds = np.where(np.isnat(array), np.nan, array.astype("datetime64[us]").astype(np.float64) / 1e6)
        return numeric_summary(seconds) | {"kind": "datetime"}
    present = [value for value in array if value is not None] if array.dtype == object else []
    if present and isinstance(present[0], bytes):
        lengths = np.array([len(value) for value in present])
        missing = len(array) - len(present)
        return {"kind": "bytes", "count": len(array), "missing": missing, "lengths": numeric_summary(lengths)}
    if array.dtype.kind in "OUTb" or (array.dtype.kind in "iu" and _is_category(array)):
        return category_summary(array.tolist())
    return numeric_summary(array)


def _tensor_summary(flat: npt.NDArray[Any]) -> dict[str, Any]:
    step = -(-flat.size // _MAX_ELEMENTS) or 1
    return numeric_summary(flat[::step]) | {"kind": "tensor", "elements": int(flat.size)}


def _is_category(array: npt.NDArray[Any]) -> bool:
    """Tell whether integers have at most ``TOP`` values; a few rows usually show that they have more."""
    return np.unique(array[:_PROBE_ROWS]).size <= TOP and np.unique(array).size <= TOP
