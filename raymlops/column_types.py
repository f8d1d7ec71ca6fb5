"""The types of columns: one table of what each is in numpy, JSON, Arrow, MLflow and the Open Inference Protocol.

Owns that table, which scalars of JSON a type accepts, how bytes and times are written in JSON, and what a label or an
answer says as a number. Knows nothing of
columns, rows or models, and imports numpy alone. ``images`` reads and writes images.
"""

from __future__ import annotations

import binascii
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raymlops.images import png_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Array = npt.NDArray[Any]

INT64 = (-(2**63), 2**63 - 1)
FLOAT64 = float(np.finfo(np.float64).max)
TIME = np.dtype("datetime64[us]")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
TIMES = (-62_135_596_800_000_000, 253_402_300_799_999_999)
"""The first and the last microsecond of a ``datetime``."""
_LARGEST = int(FLOAT64)
_SAFE = float(2**62)
"""Whole numbers below it are within int64, also where float64 has rounded them."""
_NONE = type(None)
_NUMBERS: dict[str, set[type]] = {"float": {float, int}, "int": {int}, "bool": {bool}}
_YES, _NO = frozenset({"1", "true"}), frozenset({"0", "false"})


@dataclass(frozen=True, slots=True)
class TypeInfo:
    """One type of columns."""

    dtype: np.dtype[Any]
    """Of its arrays, where no value is missing."""
    kinds: str
    """Kinds of numpy arrays that hold its values without loss."""
    noun: str
    """What a value is, for error messages."""
    schema: dict[str, Any]
    """JSON Schema of a value."""
    json_types: tuple[type, ...]
    """Python types of a value read from JSON."""
    arrow: tuple[str, ...]
    """Function of pyarrow that makes the type, and its arguments."""
    mlflow: str
    tensor: str
    """Datatype of the Open Inference Protocol."""
    shaped: bool = False
    """Whether a value may be an array."""
    nullable: bool = True
    read: Callable[[Any], Any] | None = None
    """Make a value of what JSON, or a Python caller, has for it; raises ValueError. None where it is the value."""
    write: Callable[[Array], list[Any]] | None = None
    """Return the JSON values of an array. None where they are those of ``tolist``."""
    raw: Callable[[Array], list[Any]] | None = None
    """Return the bytes of each value, of a type whose values are files or bytes."""

    @property
    def is_text(self) -> bool:
        """Return whether JSON has a string for it."""
        return self.json_types == (str,)

    def numbers(self, array: Array, *, name: str) -> npt.NDArray[np.float32]:
        """Return a column's array as float32, images as ``(rows, channels, height, width)`` from 0 to 1.

        Raises:
            ValueError: it holds text, bytes, times, or arrays of different lengths.
        """
        if array.dtype.kind in "OM":
            raise ValueError(f"the default encode() makes no tensor of {name!r}, {self.noun}: define encode(columns)")
        if self.dtype == np.uint8:
            return np.moveaxis(array, 3, 1).astype(np.float32) / np.float32(255)
        return np.asarray(array, dtype=np.float32)


def read_bytes(value: Any) -> bytes:
    """Return bytes, which JSON has in base64 (RFC 4648, with padding).

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str):
        raise ValueError
    return binascii.a2b_base64(value, strict_mode=True)


def write_bytes(values: Iterable[bytes | None]) -> list[str | None]:
    """Return base64."""
    return [None if value is None else binascii.b2a_base64(value, newline=False).decode() for value in values]


def read_time(value: Any) -> np.datetime64:
    """Return a time in UTC: of a text in ISO 8601 with its offset, or of a ``datetime``, in UTC if it is naive.

    Digits beyond microseconds are cut.

    Raises:
        ValueError: it is neither, has no offset, or is before year 1 or after year 9999 in UTC.
    """
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
        if value.tzinfo is None:
            raise ValueError
    if not isinstance(value, datetime):
        raise ValueError
    aware = value.replace(tzinfo=UTC) if value.tzinfo is None else value
    since = (aware - _EPOCH) // _MICROSECOND
    if not TIMES[0] <= since <= TIMES[1]:
        raise ValueError
    return np.datetime64(since, "us")


def write_time(array: Array) -> list[str | None]:
    """Return ISO 8601 in UTC, with microseconds."""
    texts = np.datetime_as_string(array.astype(TIME, copy=False), unit="us", timezone="UTC")
    return [None if text == "NaT" else text for text in texts.tolist()]


TYPES: dict[str, TypeInfo] = {
    "float": TypeInfo(
        dtype=np.dtype(np.float64),
        kinds="fiu",
        noun="a finite number",
        schema={"type": "number", "minimum": -FLOAT64, "maximum": FLOAT64},
        json_types=(float, int),
        arrow=("float64",),
        mlflow="double",
        tensor="FP64",
        shaped=True,
    ),
    "int": TypeInfo(
        dtype=np.dtype(np.int64),
        kinds="iu",
        noun="an integer",
        schema={"type": "integer", "minimum": INT64[0], "maximum": INT64[1]},
        json_types=(int,),
        arrow=("int64",),
        mlflow="long",
        tensor="INT64",
        shaped=True,
    ),
    "bool": TypeInfo(
        dtype=np.dtype(np.bool_),
        kinds="b",
        noun="true or false",
        schema={"type": "boolean"},
        json_types=(bool,),
        arrow=("bool_",),
        mlflow="boolean",
        tensor="BOOL",
        shaped=True,
    ),
    "string": TypeInfo(
        dtype=np.dtype(object),
        kinds="OU",
        noun="a string",
        schema={"type": "string"},
        json_types=(str,),
        arrow=("string",),
        mlflow="string",
        tensor="BYTES",
    ),
    "bytes": TypeInfo(
        dtype=np.dtype(object),
        kinds="O",
        noun="bytes in base64",
        schema={"type": "string", "contentEncoding": "base64"},
        json_types=(str,),
        arrow=("binary",),
        mlflow="binary",
        tensor="BYTES",
        read=read_bytes,
        write=write_bytes,
        raw=list,
    ),
    "datetime": TypeInfo(
        dtype=TIME,
        kinds="M",
        noun="a time in ISO 8601 with its offset, such as 2026-11-27T08:30:00Z",
        schema={"type": "string", "format": "date-time"},
        json_types=(str,),
        arrow=("timestamp", "us", "UTC"),
        mlflow="datetime",
        tensor="BYTES",
        read=read_time,
        write=write_time,
    ),
    "image": TypeInfo(
        dtype=np.dtype(np.uint8),
        kinds="u",
        noun="a PNG or JPEG image in base64",
        schema={"type": "string", "contentEncoding": "base64"},
        json_types=(str,),
        arrow=("binary",),
        mlflow="binary",
        tensor="BYTES",
        shaped=True,
        nullable=False,
        read=read_bytes,
        write=lambda array: write_bytes(png_files(array)),
        raw=png_files,
    ),
}


def as_integer(value: Any) -> Any:
    """Return a float that is a whole number as an integer, and everything else unchanged.

    A JSON reader turns integers beyond int64 into floats, the nearest of which round to 2**63: none from there on.
    """
    return int(value) if type(value) is float and value.is_integer() and abs(value) < 2.0**63 else value


def kind_of(value: Any) -> str:
    """Describe a value in a few words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, str):
        return f"the string {value[:40]!r}"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, int) and value.bit_length() > 10_000:  # which Python refuses to write out
        return "a huge integer"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def quick_scalars(
    kind: str, values: Sequence[Any], known: frozenset[str | None] | None, *, nullable: bool
) -> Array | None:
    """Return the array of a column's scalars; None where one may be invalid, which a check of each finds out.

    ``known`` are the texts that it accepts, None for any.
    """
    types = set(map(type, values))
    if kind == "int" and float in types:
        values = list(map(as_integer, values))
        types = set(map(type, values))
    missing = 0
    if nullable and _NONE in types:
        types.discard(_NONE)
        missing = sum(value is None for value in values)  # not count(), which compares: a cell may be an array
    if kind == "string":
        fits = types <= {str} and (known is None or known.issuperset(values))
        return np.array(values, dtype=object) if fits else None
    if kind == "bool" and not nullable:
        return np.array(values, dtype=np.bool_) if types == {bool} else None
    if kind == "float" and types == {float} and not missing:
        # A sum is finite only where all its terms are; where it is not, they may still be.
        return np.array(values, dtype=np.float64) if math.isfinite(sum(values)) else None
    try:
        if kind == "int" and not nullable:
            return np.array(values, dtype=np.int64) if types == {int} else None
        if kind not in _NUMBERS or not types <= _NUMBERS[kind]:
            return None
        array = np.array(values, dtype=np.float64)
    except OverflowError:
        return None
    good = np.isfinite(array) if kind == "float" else np.abs(array) < _SAFE
    return array if np.count_nonzero(good) + missing == len(values) else None


def binary(label: Any) -> int | None:
    """Return 1 or 0 for a label that is one of two classes: 1, true, "1", "true", and so on; None for another."""
    if isinstance(label, str):
        text = label.strip().lower()
        return 1 if text in _YES else 0 if text in _NO else None
    return int(label) if isinstance(label, bool | int | float) and label in (0, 1) else None


def whole(label: Any) -> int | None:
    """Return a whole number, also of a text; None for anything else."""
    number = None if isinstance(label, bool) else real(label)
    return int(number) if number is not None and number.is_integer() else None


def real(value: Any) -> float | None:
    """Return a finite number, also of a text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def chance_of(value: Any) -> float | None:
    """Return a number as a probability, from 0 to 1; None for anything else."""
    number = real(value)
    return None if number is None else min(1.0, max(0.0, number))


def _is_float(value: Any) -> bool:
    if type(value) is float:
        return math.isfinite(value)
    return type(value) is int and -_LARGEST <= value <= _LARGEST


def _is_int(value: Any) -> bool:
    value = as_integer(value)  # JSON has one type of numbers: 1.0 is an integer
    return type(value) is int and INT64[0] <= value <= INT64[1]


ACCEPTS: dict[str, Callable[[Any], bool]] = {
    "float": _is_float,
    "int": _is_int,
    "bool": lambda value: type(value) is bool,
    "string": lambda value: type(value) is str,
}
"""Whether a scalar is one of a type that JSON has."""
