"""A batch prediction takes of a file what training takes of it, and names the rows that it would not."""

import datetime as dt
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from raymlops import RecipeBase
from raymlops.data.columns import conform, table_columns
from raymlops.errors import InvalidRowsError, RecipeError
from raymlops.images import png_files
from raymlops.lifecycle.batch.inputs import parsed
from raymlops.signature import Column, Signature

PIXELS = np.arange(8, dtype=np.uint8).reshape(2, 2, 2, 1)
NOON = dt.datetime(2026, 7, 2, 12)  # noqa: DTZ001 - a time of no zone
END = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
TAKEN = [
    ("float", pa.decimal128(11, 2), [Decimal("12.05"), Decimal(2)]),
    ("float", pa.decimal256(11, 2), [Decimal("12.05")]),
    ("float", pa.float16(), [np.float16(1.5)]),
    ("float", pa.float32(), [0.1]),
    ("float", pa.int32(), [1]),
    ("int", pa.decimal128(10, 0), [Decimal(1)]),
    ("int", pa.int8(), [1]),
    ("int", pa.uint32(), [2**32 - 1]),
    ("int", pa.int64(), [2**53]),
    ("int", pa.float64(), [1.0]),
    ("datetime", pa.date32(), [dt.date(2026, 1, 2), dt.date(1, 1, 1)]),
    ("datetime", pa.date64(), [86_400_000]),
    ("datetime", pa.timestamp("s"), [5]),
    ("datetime", pa.timestamp("ms"), [5]),
    ("datetime", pa.timestamp("us"), [NOON, dt.datetime(1, 1, 1)]),  # noqa: DTZ001
    ("datetime", pa.timestamp("ns"), [1_700_000_000_000_001_500]),
    ("datetime", pa.timestamp("ns", "UTC"), [1_700_000_000_000_001_500]),
    ("datetime", pa.timestamp("us", "UTC"), [END]),
    ("datetime", pa.timestamp("us", "Europe/Berlin"), [NOON.replace(tzinfo=dt.UTC), END]),
    ("datetime", pa.timestamp("us", "+02:00"), [NOON.replace(tzinfo=dt.UTC)]),
    ("string", pa.string(), ["a"]),
    ("string", pa.large_string(), ["a"]),
    ("string", pa.string_view(), ["a"]),
    ("string", pa.dictionary(pa.int8(), pa.string()), ["a"]),
    ("bytes", pa.binary(), [b"a"]),
    ("bytes", pa.large_binary(), [b"a"]),
    ("bytes", pa.binary_view(), [b"a"]),
    ("bytes", pa.binary(1), [b"a"]),
    *((kind, of, [None]) for kind in ("float", "int", "datetime", "string") for of in (pa.null(), pa.float64())),
]
SHAPED = [
    (Column("c", "bool"), pa.bool_(), [True, False]),
    *((Column("c", "bool", nullable=True), pa.bool_(), flags) for flags in ([True, False, None], [True], [None])),
    (Column("c", "bool", nullable=True), pa.float64(), [1.0, 0.0, None]),
    (Column("c", "float", shape=(2,)), pa.list_(pa.float32()), [[1.5, 2.0], [3.0, 4.0]]),
    (Column("c", "float", shape=(2,)), pa.list_(pa.int16(), 2), [[1, 2]]),
    (Column("c", "int", shape=(2,)), pa.large_list(pa.float64()), [[1.0, 2.0]]),
    (Column("c", "int", shape=(None,)), pa.list_(pa.int64()), [[1], [2, 3], []]),
    (Column("c", "image", shape=(2, 2, 1)), pa.binary(), png_files(PIXELS)),
    (Column("c", "image", shape=(2, 2, 1)), pa.list_(pa.list_(pa.list_(pa.uint8()))), PIXELS.tolist()),
]
REFUSED = [
    ("float", pa.uint64(), [2**63]),
    ("int", pa.float64(), [1.5]),
    ("int", pa.decimal128(10, 2), [Decimal("1.50")]),
    ("int", pa.uint64(), [2**63]),
    ("int", pa.bool_(), [True]),
    ("float", pa.bool_(), [True]),
    ("bool", pa.float64(), [1.0, 0.5]),
    ("float", pa.string(), ["1.5"]),
    ("datetime", pa.string(), ["2026-07-02T12:00:00Z"]),
    ("datetime", pa.timestamp("s"), [-70_000_000_000]),
    ("datetime", pa.int64(), [5]),
    ("bytes", pa.string(), ["YQ=="]),
    ("string", pa.timestamp("us", "Europe/Berlin"), [END]),
    ("string", pa.list_(pa.timestamp("us", "Europe/Berlin")), [[END]]),
    ("string", pa.binary(), [b"a"]),
    ("float", pa.list_(pa.float64()), [[1.0]]),
]


def trained(table, column):
    """Return the column as training reads it."""

    class Recipe(RecipeBase):
        label = None

        def signature(self):
            return Signature((column,), outputs=(Column("y", "float"),))

        datasets = model = loss = None

    return conform(table_columns(table), Recipe(), place="t")["c"]


def predicted(table, column):
    """Return the column as a batch prediction reads it."""
    return parsed(table, Signature((column,), outputs=(Column("y", "float"),)))["c"]


def with_gaps(cases):
    """Give columns of these types, and nullable ones that miss a value."""
    scalars = [(Column("c", kind), of, values) for kind, of, values in cases if values != [None]]
    return scalars + [(Column("c", kind, nullable=True), of, [*values, None]) for kind, of, values in cases]


@pytest.mark.parametrize(("column", "kind", "values"), [*with_gaps(TAKEN), *SHAPED])
def test_what_training_takes_is_taken_alike(column, kind, values):
    """Each type of a file, for each type of a signature: the same array, also of some of the rows."""
    table = pa.table({"c": pa.array([*values, *values], kind)})
    half = table.slice(len(values))
    assert str(predicted(table, column).tolist()) == str(trained(table, column).tolist())
    found, expected = predicted(half, column), trained(half, column)
    assert (found.dtype, str(found.tolist())) == (expected.dtype, str(expected.tolist()))


@pytest.mark.parametrize(("column", "kind", "values"), with_gaps(REFUSED))
def test_what_training_refuses_is_refused(column, kind, values):
    """By the row where that is what is wrong; text is no time, and no bytes."""
    table = pa.table({"c": pa.array(values, kind)})
    with pytest.raises(RecipeError, match="'c'"):
        trained(table, column)
    with pytest.raises(InvalidRowsError, match="field 'c'"):
        predicted(table, column)


PAIRS = Column("c", "float", shape=(2,))


@pytest.mark.parametrize(
    ("column", "kind", "values", "message"),
    [
        (Column("c", "float"), pa.decimal128(5, 2), [Decimal(1), None], "row 1, field 'c': must not be null"),
        (Column("c", "float"), pa.float64(), [1.0, float("inf")], "row 1, .* expected a finite number, got inf"),
        (Column("c", "datetime"), pa.date32(), [dt.date(2026, 1, 1), None], "row 1, field 'c': must not be null"),
        (Column("c", "bool"), pa.bool_(), [True, None], "row 1, field 'c': must not be null"),
        (Column("c", "int"), pa.int64(), [1, None], "row 1, field 'c': must not be null"),
        (PAIRS, pa.list_(pa.float64()), [[1, 2], [1, None]], "row 1, .* got an element null"),
        (PAIRS, pa.list_(pa.float64()), [[1, 2], [1]], "row 1, .* got a dimension of length 1"),
        (Column("c", "datetime"), pa.string(), ["2026-07-02T12:00:00Z"], "^field 'c': expected datetime, .* holds str"),
        (Column("c", "float"), pa.duration("s"), [1], "row 0, field 'c': expected a finite number, got "),
        (Column("c", "int", nullable=True), pa.int64(), [2**53 + 1, None], r"^field 'c': .* beside missing ones"),
    ],
)
def test_a_row_that_does_not_fit_is_named(column, kind, values, message):
    """What is wrong with a column as a whole names the column alone."""
    with pytest.raises(InvalidRowsError, match=message):
        predicted(pa.table({"c": pa.array(values, kind)}), column)
