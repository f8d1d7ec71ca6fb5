"""Which rows are in a slice: those whose column has its value, and is of its type."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from raymlops.profiles.slices import Slice

COLUMNS = {
    "text": pa.array(["1", None, "a"]),
    "int": pa.array([1, None, 3]),
    "double": pa.array([1.0, None, 0.1]),
    "float32": pa.array([1.0, None, 0.1], pa.float32()),
    "bool": pa.array([True, None, False]),
    "list": pa.array([[1], None, [3]]),
    "struct": pa.array([{"a": 1}, None, {"a": 3}]),
    "null": pa.nulls(3),
    "coded": pa.array(["1", None, "a"]).dictionary_encode(),
}
NUMBERS = {"int", "double", "float32"}


@pytest.mark.parametrize(
    ("value", "of_type"), [("1", {"text", "coded"}), (1, NUMBERS), (1.0, NUMBERS), (True, {"bool"})]
)
def test_a_text_is_in_texts_a_number_in_numbers_a_truth_value_in_truth_values(value, of_type):
    """And in no lists, structs and nulls: a column of another type has no row of the slice."""
    for name, values in COLUMNS.items():
        for found in (values, pa.chunked_array([values])):
            rows = Slice("x", value).rows({"x": found})
            assert rows is not None
            assert rows.tolist() == [name in of_type, False, False], name


def test_a_number_is_compared_as_the_column_holds_it():
    """A tenth in 32 bits is not a tenth in 64; three halves are no integer."""
    of = {name: Slice("x", 0.1).rows({"x": values}) for name, values in COLUMNS.items()}
    assert [name for name, rows in of.items() if rows is not None and rows[2]] == ["double", "float32"]
    assert not Slice("x", 1.5).rows({"x": COLUMNS["int"]}).any()
    assert Slice("x", 0.1).rows({"x": np.array([0.1, 1.0], np.float32)}).tolist() == [True, False]


def test_arrays_of_training_are_compared_by_type_as_well():
    arrays = {"text": ["1", "a"], "int": [1, 3], "bool": [True, False]}
    for value, name in (("1", "text"), (1, "int"), (True, "bool")):
        for other, values in arrays.items():
            for dtype in (None, object):
                rows = Slice("x", value).rows({"x": np.array(values, dtype)})
                assert rows is not None
                assert rows.tolist() == [name == other, False], (value, other, dtype)
    assert not Slice("x", 1).rows({"x": np.ones((2, 2))}).any()
    gaps = np.array([1.0, np.nan, 0.0])  # truth values, of which one is missing
    assert [Slice("x", value).rows({"x": gaps}).tolist() for value in (True, False)] == [
        [True, False, False],
        [False, False, True],
    ]
