"""Convert the values of one column to an array: JSON values of rows, and whole arrays.

Owns the strict validation of every value and its error messages. Knows nothing of requests or models. Valid values are
converted at once, without a check of each in Python; only where one may be invalid are they read one by one, which
reports the problems or finds none. Both ways give the same array.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from raymlops.column_types import ACCEPTS, INT64, TIME, TIMES, TYPES, TypeInfo, kind_of, quick_scalars
from raymlops.errors import RowProblem
from raymlops.images import MAX_BYTES, MODES, decoded_bytes, open_image, pixels

if TYPE_CHECKING:
    from collections.abc import Sequence

    Array = npt.NDArray[Any]


ColumnType = Literal["float", "int", "bool", "string", "bytes", "datetime", "image"]

Columns = Mapping[str, npt.NDArray[Any]]

MAX_PROBLEMS = 20
MISSING = object()
"""Marks a required field that a row does not have."""


@dataclass(frozen=True, slots=True)
class Column:
    """One named, typed column.

    ``shape`` is the shape of one value: ``()`` for a scalar, ``(8, 8)`` for a tensor, None for a free dimension. That
    of an image is ``(height, width, channels)``, with 1, 3 or 4 channels.
    ``categories`` are the values known at training time; ``unknown`` says what a request with
    another one gets: ``"accept"`` (the recipe encodes it as unknown) or ``"reject"`` (an error).
    """

    name: str
    type: ColumnType
    nullable: bool = False
    shape: tuple[int | None, ...] = ()
    categories: tuple[str, ...] | None = None
    unknown: Literal["accept", "reject"] = "accept"
    description: str = ""
    max_length: int | None = None
    """How long a text, bytes, or a free dimension may be: the memory that one row takes depends on it."""

    def __post_init__(self) -> None:
        if not self.name:
            msg = "a column needs a name"
            raise ValueError(msg)
        if self.type not in TYPES:
            msg = f"column {self.name!r}: type {self.type!r} is not one of {', '.join(TYPES)}"
            raise ValueError(msg)
        if self.shape and not self.info.shaped:
            msg = f"column {self.name!r}: a {self.type} column has no shape"
            raise ValueError(msg)
        if self.max_length is not None and not (self.max_length > 0 and self.has_length):
            msg = f"column {self.name!r}: max_length is a number above 0, for texts, bytes and free dimensions"
            raise ValueError(msg)
        if self.type == "image" and (len(self.shape) != 3 or self.shape[2] not in MODES):
            msg = (
                f"column {self.name!r}: an image has the shape (height, width, channels) with 1, 3 or 4 channels, and "
                f"None where height or width may differ; got {self.shape}"
            )
            raise ValueError(msg)
        if self.nullable and (self.shape or not self.info.nullable):
            names = ", ".join(name for name, info in TYPES.items() if info.nullable)
            msg = f"column {self.name!r}: only scalar columns can be nullable, of the types {names}"
            raise ValueError(msg)

    @property
    def info(self) -> TypeInfo:
        """Return what its type is in numpy, JSON, Arrow and protocols."""
        return TYPES[self.type]

    @property
    def nan_missing(self) -> bool:
        """Return whether NaN stands for a missing integer or truth value, so that its arrays are float64."""
        return self.nullable and self.type in {"int", "bool"}

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the type of its arrays."""
        return np.dtype(np.float64) if self.nan_missing else self.info.dtype

    @property
    def has_length(self) -> bool:
        """Return whether its values may differ in length."""
        return None in self.shape or self.type in {"string", "bytes"}

    @property
    def varies(self) -> bool:
        """Return whether the size of its values depends on the request; categories are encoded as one number."""
        return self.has_length and self.categories is None

    @property
    def sent_shape(self) -> tuple[int | None, ...]:
        """Return the shape of a value in a request or an answer, where an image is the bytes of a file."""
        return () if self.info.is_text else self.shape

    @property
    def absent(self) -> object:
        """Return what stands for a value that a row does not have."""
        return None if self.nullable else MISSING

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of one value."""
        schema: dict[str, Any] = dict(self.info.schema)
        if self.categories is not None and self.unknown == "reject":
            schema["enum"] = [*self.categories, *([None] if self.nullable else [])]
        if self.max_length is not None and not self.shape:
            bytes_sent = 4 * -(-self.max_length // 3)  # of base64
            schema["maxLength"] = self.max_length if self.type == "string" else bytes_sent
        for size in reversed(self.sent_shape):
            schema = {"type": "array", "items": schema}
            if size is not None:
                schema |= {"minItems": size, "maxItems": size}
            elif self.max_length is not None:
                schema["maxItems"] = self.max_length
        if self.nullable:
            schema["type"] = [schema["type"], "null"]
        if self.description or self.type == "image":
            schema["description"] = self.description or expected(self)
        return schema


def known_texts(column: Column) -> frozenset[str | None] | None:
    """Return the texts that a column accepts, with None where it may be missing; None alone where it accepts any."""
    if column.categories is None or column.unknown != "reject":
        return None
    return frozenset(column.categories) | ({None} if column.nullable else frozenset())


def quick_array(column: Column, values: Sequence[Any], known: frozenset[str | None] | None) -> Array | None:
    """Return the array of a column's JSON values, or None where they need ``careful_array``.

    ``known`` is ``known_texts(column)``, which the caller keeps.
    """
    if not column.shape:
        if column.max_length is not None and not _short(values, column.max_length):
            return None
        return quick_scalars(column.type, values, known, nullable=column.nullable)
    flat: Sequence[Any] = values
    lengths: list[int] = []
    for axis, size in enumerate(column.shape):
        if set(map(type, flat)) != {list}:
            return None
        if size is None:
            if axis:
                return None
            lengths = list(map(len, flat))
            if column.max_length is not None and max(lengths) > column.max_length:
                return None
        elif set(map(len, flat)) != {size}:
            return None
        flat = list(chain.from_iterable(flat))
    array = quick_scalars(column.type, flat, None, nullable=False)
    if array is None:
        return None
    inner: Any = column.shape[1:]
    if not lengths:
        return array.reshape(len(values), column.shape[0], *inner)  # type: ignore[arg-type]
    flat_array = array.reshape(-1, *inner)
    ends = list(accumulate(lengths))
    return _pieces([flat_array[end - length : end] for end, length in zip(ends, lengths, strict=True)])


def careful_array(column: Column, values: Sequence[Any], problems: list[RowProblem]) -> Array:
    """Return the array of a column's JSON values, read one by one; errors are added to ``problems``."""
    known = known_texts(column)
    items: list[Any] = []
    for index, value in enumerate(values):
        try:
            items.append(_item(column, value, known))
        except ValueError as error:
            problems.append(RowProblem(index, column.name, str(error)))
            if len(problems) >= MAX_PROBLEMS:
                break
    if column.type == "image" and not problems:
        items = _decoded(column, items, problems)
    if problems:
        return np.empty(0)
    if None in column.shape:
        return _pieces(items)
    if column.nullable:
        filled = missing_array(column, len(items))
        given = [index for index, value in enumerate(items) if value is not None]
        filled[given] = [items[index] for index in given]
        return filled
    return np.array(items, dtype=column.info.dtype)


def whole_array(column: Column, array: Array, problems: list[RowProblem]) -> Array:
    """Return the array of a column from one of any compatible type; errors are added to ``problems``.

    The result is writable memory: torch.from_numpy warns about read-only memory, and may write to it.
    """
    shape, sent = array.shape[1:], column.sent_shape
    if len(shape) != len(sent) or any(size is not None and size != got for size, got in zip(sent, shape, strict=True)):
        want = ", ".join(["rows", *("any" if size is None else str(size) for size in sent)])
        problems.append(RowProblem(None, column.name, f"expected the shape ({want}), got {array.shape}"))
        return array
    longest = max((got for size, got in zip(sent, shape, strict=True) if size is None), default=0)
    if column.max_length is not None and longest > column.max_length:
        problems.append(RowProblem(None, column.name, _too_long(column, longest)))
        return array
    kinds = "OU" if column.info.is_text else column.info.kinds
    if array.dtype.kind not in kinds + ("f" if column.nan_missing else ""):
        problems.append(RowProblem(None, column.name, f"expected {column.type} values, got {array.dtype}"))
        return array
    if column.info.is_text:
        values = array.tolist()
        texts = quick_array(column, values, known_texts(column))
        return careful_array(column, values, problems) if texts is None else texts
    bad = misfits(column, array)
    if bad is not None and bad.any():
        for place in np.argwhere(bad)[:MAX_PROBLEMS].tolist():
            message = f"expected {expected(column)}, got {kind_of(array[tuple(place)].item())}"
            problems.append(RowProblem(place[0], column.name, message))
        return array
    array = array.astype(column.dtype, copy=False)
    if not (array.flags.writeable and array.flags.aligned and array.flags.c_contiguous):
        array = array.copy()
    return _pieces(list(array)) if None in column.shape else array


def missing_array(column: Column, rows: int) -> Array:
    """Return the array of a nullable column without values."""
    if column.info.dtype == object:
        return np.full(rows, None, dtype=object)
    return np.full(rows, np.datetime64("NaT"), dtype=TIME) if column.info.dtype == TIME else np.full(rows, math.nan)


def whole_values(column: Column, array: Array) -> list[Any]:
    """Return an array's values: integers or truth values and None, also where NaN stands for a missing one."""
    values: list[Any] = array.tolist()
    if not column.nan_missing or array.dtype.kind != "f":
        return values
    (make,) = column.info.json_types
    return [make(value) if value == value else None for value in values]  # noqa: PLR0124 - NaN alone differs


def expected(column: Column) -> str:
    """Describe the values that a column accepts."""
    if not column.shape:
        return column.info.noun + (" or null" if column.nullable else "")
    dims = ", ".join("any" if size is None else str(size) for size in column.shape)
    if column.type == "image":
        return f"{column.info.noun}, of height, width and channels ({dims})"
    return f"an array of shape ({dims}) of {column.type}"


def _item(column: Column, value: Any, known: frozenset[str | None] | None) -> Any:
    """Return one value as its array holds it; of an image its opened header, of a shape without None the value itself.

    Raises:
        ValueError: says what was expected, and what was got.
    """
    if value is None or value is MISSING:
        if column.nullable:
            return None
        what = "is missing" if value is MISSING else "must not be null"
        raise ValueError(f"{what}; expected {expected(column)}")
    if column.info.read is not None:
        try:
            read = column.info.read(value)
        except (ValueError, OverflowError):
            raise ValueError(f"expected {expected(column)}, got {kind_of(value)}") from None
        if column.type != "image":
            _check_length(column, read)
            return read
        try:
            image = open_image(read, column.shape)
        except ValueError as error:
            raise ValueError(f"expected {expected(column)}, {error}") from None
        _check_length(column, range(max(image.size)))
        return image
    if column.shape:
        if (message := _check_tensor(column, value, column.shape)) is not None:
            raise ValueError(message)
        return _ragged(column, value) if None in column.shape else value
    if not ACCEPTS[column.type](value):
        raise ValueError(f"expected {expected(column)}, got {kind_of(value)}")
    _check_length(column, value)
    if known is not None and value not in known:
        raise ValueError(_unknown(column, value))
    return value


def _decoded(column: Column, opened: Sequence[Any], problems: list[RowProblem]) -> list[Any]:
    """Return the pixels of opened images, all of which together are bounded before the first is decoded."""
    channels = column.shape[2] or 0
    total = sum(decoded_bytes(image, channels) for image in opened)
    if total > MAX_BYTES:
        size = f"the images of {len(opened)} rows have {total >> 20} MiB when decoded"
        problems.append(RowProblem(None, column.name, f"{size}; at most {MAX_BYTES >> 20} in one request"))
        return []
    found = []
    for index, image in enumerate(opened):
        try:
            found.append(pixels(image, channels))
        except ValueError as error:
            problems.append(RowProblem(index, column.name, f"expected {expected(column)}, {error}"))
            if len(problems) >= MAX_PROBLEMS:
                break
    return found


def _pieces(parts: Sequence[Array]) -> Array:
    pieces = np.empty(len(parts), dtype=object)
    for index, part in enumerate(parts):
        pieces[index] = part
    return pieces


def misfits(column: Column, array: Array) -> Array | None:
    """Return which numbers or times a column does not accept; None where their type says that it accepts all."""
    bad: Array | None = None
    if array.dtype.kind == "M":
        first, last = (np.datetime64(time, "us") for time in TIMES)
        bad = (array < first) | (array > last)
    elif array.dtype.kind != "f":
        if column.type == "int" and array.dtype == np.uint64:
            bad = array > np.uint64(INT64[1])
    elif column.type == "float":
        bad = np.isinf(array) if column.nullable else ~np.isfinite(array)
    elif column.type == "bool":
        bad = ~((array == 0) | (array == 1) | np.isnan(array))
    else:
        bad = ~((np.floor(array) == array) & (np.abs(array) < 2.0**63) | np.isnan(array))
    return bad


def _check_tensor(column: Column, value: Any, shape: Sequence[int | None]) -> str | None:
    if not shape:
        if ACCEPTS[column.type](value):
            return None
        return f"expected {expected(column)}, got an element {kind_of(value)}"
    if not isinstance(value, list):
        return f"expected {expected(column)}, got {kind_of(value)}"
    if shape[0] is not None and len(value) != shape[0]:
        return f"expected {expected(column)}, got a dimension of length {len(value)}"
    if shape[0] is None and column.max_length is not None and len(value) > column.max_length:
        return _too_long(column, len(value))
    return next((m for item in value if (m := _check_tensor(column, item, shape[1:]))), None)


def _ragged(column: Column, value: list[Any]) -> Array:
    try:
        array = np.asarray(value, dtype=column.info.dtype)
    except ValueError:  # numpy's word for inner lists of different lengths
        raise ValueError(f"expected {expected(column)}, got inner arrays of different lengths") from None
    if array.ndim < len(column.shape):  # an empty list says nothing of the dimensions within it
        array = array.reshape(*array.shape, *(size or 0 for size in column.shape[array.ndim :]))
    return array


def _short(values: Sequence[Any], most: int) -> bool:
    """Return whether all texts of a column have at most so many characters."""
    return all(len(value) <= most for value in values if type(value) is str)


def _check_length(column: Column, value: Any) -> None:
    """Raise ValueError for a text, or the like, that is longer than its column allows."""
    if column.max_length is not None and len(value) > column.max_length:
        raise ValueError(_too_long(column, len(value)))


def _too_long(column: Column, length: int) -> str:
    unit = {"string": "characters", "bytes": "bytes", "image": "pixels a side"}.get(column.type, "elements a dimension")
    return f"expected at most {column.max_length} {unit}, got {length}"


def _unknown(column: Column, value: str) -> str:
    known = sorted(column.categories or ())
    return f"unknown category {value[:40]!r}; known: {', '.join(known[:12])}{' ...' if len(known) > 12 else ''}"
