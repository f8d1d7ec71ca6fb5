"""Tables become the arrays that a request would bring."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from raymlops.data.columns import hash_columns, table_columns
from raymlops.errors import RecipeError

if TYPE_CHECKING:
    from pathlib import Path

FRAME = pd.DataFrame(
    {
        "number": [1.5, None],
        "whole": pd.array([1, None], dtype="Int64"),
        "count": np.array([1, 2], dtype=np.int16),
        "flag": [True, False],
        "text": ["x", None],
        "kind": pd.Categorical(["u", "v"]),
        "vector": [[1.0, 2.0], [3.0, 4.0]],
        "ragged": [[1, 2], [3]],
    }
)


def test_a_frame_has_the_types_of_a_signature() -> None:
    """Numbers are float64 or int64, NaN where missing; text is objects with None; lists of one length are stacked."""
    columns = table_columns(FRAME)
    assert {name: array.dtype.name for name, array in columns.items()} == {
        "number": "float64",
        "whole": "float64",
        "count": "int64",
        "flag": "bool",
        "text": "object",
        "kind": "object",
        "vector": "float64",
        "ragged": "object",
    }
    assert columns["text"].tolist() == ["x", None]
    assert np.isnan(columns["whole"][1])
    assert columns["vector"].shape == (2, 2)
    assert [array.tolist() for array in columns["ragged"]] == [[1, 2], [3]]


def test_a_parquet_file_holds_the_same_rows(tmp_path: Path) -> None:
    """Rows have the same hash whether they come as a frame or from its file."""
    FRAME.to_parquet(tmp_path / "rows.parquet")
    from_file = hash_columns(table_columns(tmp_path / "rows.parquet"))
    assert from_file.tolist() == hash_columns(table_columns(FRAME)).tolist()


def test_equal_rows_have_equal_hashes() -> None:
    """The width of a number, the sign of zero, the bits of NaN and the order of columns do not count; a value does."""
    one = {"a": np.array([1, 0, 2], dtype=np.int64), "b": np.array([np.nan, 0.0, 1.0])}
    other = {"b": np.array([-np.nan, -0.0, 1.5]), "a": np.array([1.0, 0.0, 2.0], dtype=np.float32)}
    assert (hash_columns(one) == hash_columns(other)).tolist() == [True, True, False]


def test_values_that_change_places_change_the_hash() -> None:
    """A sum over columns or positions would not notice; position is part of what is hashed."""
    rows = {"a": np.array([1.0, 2.0]), "b": np.array([2.0, 1.0]), "v": np.array([[1.0, 2.0], [2.0, 1.0]])}
    assert len(set(hash_columns({"a": rows["a"], "b": rows["b"]}).tolist())) == 2
    assert len(set(hash_columns({"v": rows["v"]}).tolist())) == 2


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"a": [1, 2], "b": [1]}, "columns of one length"),
        ({"a": np.array(["2024-01-01"], dtype="datetime64[D]")}, "'a' of a table has the type datetime64"),
        ({"a": [1, "x"]}, "int and str"),
        ({"a": 1.0}, "single value"),
        ("missing.parquet", "cannot be read"),
    ],
)
def test_what_no_request_could_bring_is_refused(table: object, message: str) -> None:
    """The error names the column and its type."""
    with pytest.raises(RecipeError, match=message):
        table_columns(table)
