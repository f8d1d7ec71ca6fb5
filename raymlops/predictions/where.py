"""Find rows by the values of their fields: ``features.customer=4711``, ``request_id=...``, ``model_version=3``.

Owns how such a condition is written and compared, by the type that a field has in a file; a text in any of Unicode's
normal forms. Files of one log may differ in that: a field that one lacks, such as a redacted one, matches no row there,
and those rows are counted.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymlops.errors import UsageError
from raymlops.predictions.schema import FEATURES, FIELDS, OUTPUT

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

_FLAGS = {"true": True, "false": False}


@dataclass(frozen=True)
class Where:
    """Conditions that hold together: fields and their values as text."""

    conditions: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Where:
        """Read conditions such as ``features.customer=4711``.

        Raises:
            UsageError: one has another form, or no row has such a field.
        """
        return cls(tuple(_condition(text) for text in texts))

    @property
    def fields(self) -> list[str]:
        """Return the fields that are compared."""
        return list(dict.fromkeys(name for name, _ in self.conditions))


@dataclass
class Search:
    """One search through files of several schemas."""

    where: Where
    searched: int = 0
    """Rows whose fields were compared."""
    unsearched: int = 0
    """Rows without one of the fields, or with one of another type."""
    problem: str = ""
    """Why the first of those could not be compared."""

    def matches(self, batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        """Return which rows of a batch fulfil all conditions; null fulfils none."""
        found = np.ones(batch.num_rows, dtype=np.bool_)
        for name, text in self.where.conditions:
            column = _column(batch, name)
            try:
                value = _scalar(text, None if column is None else column.type, name=name)
            except UsageError as error:
                self.problem = self.problem or error.message
                self.unsearched += batch.num_rows
                return np.zeros(batch.num_rows, dtype=np.bool_)
            if pa.types.is_string(value.type) and not text.isascii():
                column = pc.utf8_normalize(column, form="NFD")  # its NFC decomposes too (pyarrow 25)
            same = pc.equal(column, value)
            found &= np.asarray(pc.fill_null(same, fill_value=False), dtype=np.bool_)
        self.searched += batch.num_rows
        return found

    def check(self) -> None:
        """Reject a search that could find nothing, such as by a misspelt field.

        Raises:
            UsageError: there were rows, and none that could be compared.
        """
        refuse_unsearched(self.searched, self.unsearched, self.problem)


def refuse_unsearched(searched: int, unsearched: int, problem: str) -> None:
    """Reject conditions that could find nothing, such as by a misspelt field.

    Raises:
        UsageError: with the ``problem``: there were rows, and none that could be compared.
    """
    if unsearched and not searched:
        raise UsageError(problem, hint="Values are compared by the field's type; redacted fields are not kept.")


def _condition(text: str) -> tuple[str, str]:
    name, mark, value = text.partition("=")
    top, dot, inner = name.partition(".")
    nested = top in {FEATURES, OUTPUT}
    if not mark or nested != bool(dot and inner) or not (nested or top in FIELDS):
        raise UsageError(
            f"{text[:80]!r} is no condition; expected FIELD=VALUE",
            hint=f"Fields are features.NAME, output.NAME, {', '.join(FIELDS)}.",
        )
    return name, value


def _column(batch: pa.RecordBatch, name: str) -> pa.Array | None:
    top, _, inner = name.partition(".")
    place = batch.schema.get_field_index(top)
    if place < 0:
        return None
    column = batch.column(place)
    if not inner:
        return column
    place = column.type.get_field_index(inner)
    return None if place < 0 else pc.struct_field(column, place)


def _scalar(text: str, kind: pa.DataType | None, *, name: str) -> pa.Scalar:
    """Return a text as a value of a field's type, which is None for a field that does not exist.

    Raises:
        UsageError: it is none, or a field of this type cannot be compared.
    """
    if kind is None:
        raise UsageError(f"no row has the field {name}")
    try:
        return pa.scalar(_value(text, kind), kind)
    except (KeyError, ValueError, OverflowError, pa.ArrowException):
        raise UsageError(f"{name} holds {kind}, which cannot be compared with {text[:40]!r}") from None


def _value(text: str, kind: pa.DataType) -> Any:
    """Return a text as a value of an Arrow type; raise ValueError or KeyError where it is none."""
    if pa.types.is_string(kind):
        return unicodedata.normalize("NFD", text)
    if pa.types.is_boolean(kind):
        return _FLAGS[text.lower()]
    if pa.types.is_integer(kind):
        return int(text)
    if pa.types.is_floating(kind) and math.isfinite(number := float(text)):
        return number
    if pa.types.is_timestamp(kind):
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    raise ValueError(text)
