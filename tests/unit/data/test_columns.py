"""Tables become the arrays that a request would bring."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from raymlops.arrays import Column
from raymlops.data.columns import as_requested, conform, stackable, table_columns
from raymlops.data.parquet.files import list_parquet
from raymlops.data.row_hashes import hash_columns
from raymlops.errors import RecipeError
from raymlops.images import png_files
from raymlops.recipe import RecipeBase
from raymlops.signature import Signature

if TYPE_CHECKING:
    from pathlib import Path

FRAME = pd.DataFrame(
    {
        "number": [1.5, None],
        "whole": pd.array([1, None], dtype="Int64"),
        "count": np.array([1, 2], dtype=np.int16),
        "flag": [True, False],
        "maybe": pd.array([True, None], dtype="boolean"),
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
        "maybe": "object",
        "text": "object",
        "kind": "object",
        "vector": "float64",
        "ragged": "object",
    }
    assert columns["text"].tolist() == ["x", None]
    assert columns["maybe"].tolist() == [True, None]
    assert np.isnan(columns["whole"][1])
    assert columns["vector"].shape == (2, 2)
    assert [array.tolist() for array in columns["ragged"]] == [[1, 2], [3]]


def test_a_parquet_file_holds_the_same_rows(tmp_path: Path) -> None:
    """Rows have the same hash whether they come as a frame or from its file."""
    FRAME.to_parquet(tmp_path / "rows.parquet")
    from_file = hash_columns(list_parquet(tmp_path / "rows.parquet").columns())
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
        ({"a": np.array([1], dtype="timedelta64[s]")}, "'a' of a table has the type timedelta64"),
        ({"a": np.array([b"x"])}, r"'a' of a table has the type \|S1"),
        (pa.table({"a": pa.array([{"b": 1}])}), "'a' of a table has the type struct<b: int64>"),
        (pd.DataFrame({"a": [1, "x"]}), "'a' of a DataFrame of the recipe mixes types"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "two columns of one name"),
        ({"a": [1, "x"]}, "int and str"),
        ({"a": 1.0}, "single value"),
    ],
)
def test_what_no_request_could_bring_is_refused(table: object, message: str) -> None:
    """The error names the column and its type."""
    with pytest.raises(RecipeError, match=message):
        table_columns(table)


class Reads(RecipeBase):
    """Reads the columns that a test names."""

    def __init__(self, *columns: Column) -> None:
        super().__init__()
        self.columns = columns

    def signature(self) -> Signature:
        return Signature(self.columns, (Column("y", "float"),))


A = np.array([1.0, 2.0])
UNNEEDED = {
    "when": pd.to_datetime(["2024-01-01", None]),
    "zoned": pd.to_datetime(["2024-01-01", "2024-01-02"]).tz_localize("Europe/Berlin"),
    "raw": [b"x\0", None],
    "mixed": [1, "x"],
    "took": pd.to_timedelta([1, 2], unit="s"),
    "nested": [{"a": 1}, None],
    "hashed": np.array([2**64 - 1, 1], dtype=np.uint64),
}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (torch.tensor([0.5, -1.0], dtype=torch.bfloat16), [0.5, -1.0]),
        (np.ma.masked_equal([1.5, 0.0], 0.0), [1.5, None]),
        (np.ma.masked_equal([3, 0], 0), [3.0, None]),
        (np.ma.masked_equal([3, 0], 7), [3, 0]),
        (np.ma.masked_equal(np.array(["x", "y"], dtype=object), "y"), ["x", None]),
        (np.ma.array([[1.0, 2.0], [3.0, 4.0]], mask=[[0, 0], [0, 1]]), [[1.0, 2.0], [3.0, None]]),
        (np.ma.array(np.array(["2024-01-01", "2024-01-02"], "M8[D]"), mask=[0, 1]), ["2024-01-01", None]),
        (pd.arrays.SparseArray([0.0, 1.0]), [0.0, 1.0]),
    ],
    ids=str,
)
def test_a_masked_value_is_missing_and_a_sparse_one_is_there(values: Any, expected: list[Any]) -> None:
    """As in any other table; halved floats are exact. What a mask hides is never trained on."""
    tables = [{"a": values}, *([pd.DataFrame({"a": values})] if isinstance(values, pd.arrays.SparseArray) else [])]
    for table in tables:
        array = table_columns(table)["a"]
        if array.dtype.kind == "M":
            found = [None if np.isnat(value) else str(value)[:10] for value in array]
            assert found == expected
        else:
            np.testing.assert_equal(array, np.array(expected).astype(array.dtype))


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        ({"a": torch.eye(2).to_sparse()}, r"torch\.float32, torch\.sparse_coo"),
        ({"a": np.ma.masked_equal([[1, 2], [3, 4]], 4)}, "masked arrays of int64"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "complex64"),
        (pd.DataFrame({"a": [1j, 2j]}), "complex128"),
        (pd.DataFrame({"a": pd.interval_range(0, 2)}), r"extension<pandas\.interval"),
    ],
    ids=str,
)
def test_what_is_refused_has_its_type_named_and_what_to_do(table: Any, kind: str) -> None:
    """Not an error of numpy, Arrow or torch."""
    with pytest.raises(RecipeError, match=rf"(?si)'a' of a table has the type {kind}.*Turn it into numbers"):
        table_columns(table)


def test_what_training_does_not_read_is_not_refused() -> None:
    """A frame, an Arrow table and a mapping with columns of any type beside the one of the signature."""
    frame = pd.DataFrame({"a": A, **UNNEEDED})
    mapping = {name: frame[name].to_numpy() for name in frame}
    storable = pa.Table.from_pandas(frame.drop(columns=["mixed", "zoned"]))
    for table in (frame, storable, mapping):
        columns = table_columns(table)
        assert conform(columns, Reads(Column("a", "float")), place="the table")["a"].tolist() == [1.0, 2.0]
        assert columns["raw"].tolist() == [b"x\0", None]
        assert np.array_equal(columns["when"], np.array(["2024-01-01", "NaT"], dtype="M8[us]"), equal_nan=True)
        assert "zoned" not in table or columns["zoned"][0] == np.datetime64("2023-12-31T23:00:00")
        hash_columns(columns)
        with pytest.raises(RecipeError, match="'nested' of a table has the type"):
            columns["nested"]
        with pytest.raises(RecipeError, match="'hashed' of a table has values of uint64"):
            conform(columns, Reads(Column("hashed", "int")), place="the table")
        with pytest.raises(KeyError):
            columns["none"]


@pytest.mark.parametrize(
    "flags",
    [
        pd.DataFrame({"a": pd.array([True, None, False], dtype="boolean")}),
        pa.table({"a": [True, None, False]}),
        {"a": [True, None, False]},
        {"a": np.ma.masked_array([True, True, False], [0, 1, 0])},
    ],
    ids=["frame", "arrow", "lists", "masked"],
)
def test_flags_that_are_missing_are_nan_where_the_signature_says_nullable(flags: Any) -> None:
    """Beside 1 and 0, as a request's are; where it does not say so, the table is refused, by what is missing."""
    columns = table_columns(flags)
    array = conform(columns, Reads(Column("a", "bool", nullable=True)), place="t")["a"]
    np.testing.assert_array_equal(array, [1.0, np.nan, 0.0])
    with pytest.raises(RecipeError, match=r"is a bool, but in t it (is missing 1 time|holds float64)"):
        conform(columns, Reads(Column("a", "bool")), place="t")
    full = table_columns({"a": [True, False]})
    assert conform(full, Reads(Column("a", "bool", nullable=True)), place="t")["a"].dtype == np.float64


@pytest.mark.parametrize(
    "ids",
    [
        np.array([2**63, 1], dtype=np.uint64),
        pa.chunked_array([pa.array([2**63, 1], pa.uint64())]),
        [2**64, 1],
        [2**63, -1],
        [2**60 + 1, None],
        [np.int64(2**60 + 1), None],
        [np.int64(-(2**63)), None],
        np.array([np.uint64(2**63 + 1), None], dtype=object),
        [2**60 + 1, float("nan")],
        [np.int64(2**60 + 1), np.float64("nan"), 1],
        [np.uint64(2**63 + 1), np.int64(-1)],
        np.ma.masked_equal([2**60 + 1, 0], 0),
        pa.chunked_array([pa.array([2**60 + 1, None])]),
    ],
    ids=str,
)
def test_ids_never_wrap_or_round_in_silence(ids: object) -> None:
    """A hashed id beyond int64 would be negative; one with gaps beyond float64 another id."""
    table = pa.table({"a": ids}) if isinstance(ids, pa.ChunkedArray) else {"a": ids}
    with pytest.raises(RecipeError, match=r"(?s)'a' of a table has values of .*hash them into int64"):
        table_columns(table)


def test_ids_beyond_the_floats_have_hashes_of_their_own() -> None:
    """2**53 + 1 has no float64; integers that have one hash like it, as before."""
    ids = np.array([2**53, 2**53 + 1, 2**60, 2**60 + 1, 2**63 - 1, 2**63 - 2, -(2**60) - 1, -(2**63)])
    hashes = hash_columns({"id": ids})
    assert len(set(hashes.tolist())) == len(ids)
    exact = [0, 2, 7]
    assert (hash_columns({"id": ids.astype(np.float64)})[exact] == hashes[exact]).all()
    big = np.array([2**64 - 1, 2**64 - 2, 2**63], dtype=np.uint64)
    assert len(set(hash_columns({"id": big}).tolist())) == 3
    times = np.array(["2024-01-01T00:00:00.000001", "2024-01-01T00:00:00.000002", "NaT", "NaT"], dtype="M8[us]")
    assert len(set(hash_columns({"at": times}).tolist())) == 3


def test_hashes_are_those_of_earlier_releases() -> None:
    """A run that began with one must be resumed by the next."""
    columns = {"a": np.array([1, -7]), "b": np.array([0.5, np.nan]), "c": np.array(["x", None], dtype=object)}
    assert hash_columns(columns).tolist() == [13742789617185053703, 5202736811798017861]


def test_lists_of_numbers_are_stacked_whatever_their_layout() -> None:
    """Fixed-size or not, in chunks, sliced, nested or empty; the values are those of Python's lists."""
    rows = np.arange(24.0).reshape(6, 4)
    plain = pa.array(rows.tolist(), pa.list_(pa.float32()))
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel(), pa.float32()), 4)
    nested = pa.array(rows.reshape(6, 2, 2).tolist(), pa.large_list(pa.list_(pa.int8(), 2)))
    flags = pa.array((rows % 2 == 0).tolist())
    for lists in (plain, fixed):
        for column in (lists, lists.slice(1, 3), pa.chunked_array([lists.slice(4), lists.slice(0, 2)])):
            array = table_columns(pa.table({"x": column}))["x"]
            assert array.dtype == np.float64
            assert array.tolist() == column.to_pylist()
    table = table_columns(pa.table({"nested": nested, "flags": flags}))
    assert (table["nested"].dtype, table["nested"].tolist()) == (np.int64, nested.to_pylist())
    assert (table["flags"].dtype, table["flags"].tolist()) == (np.bool_, flags.to_pylist())
    nothing = table_columns(pa.table({"x": pa.array([], pa.list_(pa.int64()))}))["x"]
    assert len(nothing) == 0
    empty = table_columns(pa.table({"x": pa.array([[], []], pa.list_(pa.int64()))}))["x"]
    assert empty.shape == (2, 0)


def test_lists_of_many_lengths_are_an_array_each() -> None:
    """Also those without a value, and those of lists."""
    values: list[list[int]] = [[1, 2], [], [3]]
    column = pa.array(values, pa.list_(pa.uint16()))
    for table in (pa.table({"x": column}), pa.table({"x": pa.chunked_array([column.slice(0, 1), column.slice(1)])})):
        array = table_columns(table)["x"]
        assert array.dtype == object
        assert [item.tolist() for item in array] == values
        assert {item.dtype for item in array} == {np.dtype(np.int64)}
    deep = table_columns(pa.table({"x": [[[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]]]}))["x"]
    assert [item.shape for item in deep] == [(1, 2), (2, 2)]
    wide = table_columns(pa.table({"x": [[[1, 2]], [[1, 2, 3]], [], [[4], [5]]]}))["x"]
    assert [item.tolist() for item in wide] == [[[1, 2]], [[1, 2, 3]], [], [[4], [5]]]
    none = pa.array([[], []], pa.list_(pa.list_(pa.float32())))
    assert table_columns(pa.table({"x": none}))["x"].shape == (2, 0)
    text = table_columns(pa.table({"x": [["a", "b"], ["c", "d"]]}))["x"]
    assert text.tolist() == [["a", "b"], ["c", "d"]]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[1.0], None]), "ragged or missing arrays"),
        (pa.array([[1.0, None], [1.0, 2.0]]), "ragged or missing arrays"),
        (pa.array([[[1.0], [2.0, 3.0]], [[1.0], [2.0]]]), "ragged or missing arrays"),
        (pa.array([[[[1.0]], [[2.0, 3.0]]], [[[1.0, 2.0], [3.0, 4.0]]]]), "ragged or missing arrays"),
        (pa.array([[2**63], [1]], pa.list_(pa.uint64())), "beyond int64"),
    ],
)
def test_lists_that_no_array_holds_are_refused(column: pa.Array, message: str) -> None:
    """Missing lists and values, lists within lists of several lengths, integers that would wrap."""
    with pytest.raises(RecipeError, match=message):
        table_columns(pa.table({"x": column}))


def test_lists_as_stored_are_the_files_own_memory_until_a_batch_is_encoded() -> None:
    """Then they are what a request would bring, and may be written to; rows have the hashes that they always had."""
    rows = np.arange(24.0).reshape(6, 4)
    plain = pa.table({"x": pa.array(rows.tolist(), pa.list_(pa.float32())), "y": rows[:, 0]})
    halves = pa.table({"x": pa.array(rows.tolist(), pa.list_(pa.int16(), 4)), "y": rows[:, 0]})
    chunks = pa.concat_tables([plain.slice(4), plain.slice(0, 2)])
    for table, kind, stored in ((plain, "float", np.float32), (halves, "int", np.int16), (chunks, "float", np.float64)):
        recipe = Reads(Column("x", kind, shape=(4,)))
        assert stackable(recipe) == {"x"}
        read = conform(table_columns(table, as_stored={"x"}), recipe, place="the table")
        asked = conform(table_columns(table), recipe, place="the table")
        assert read["x"].dtype == stored
        assert hash_columns(read).tolist() == hash_columns(asked).tolist()
        found = as_requested(read, recipe)["x"]
        assert (found.dtype, found.tolist()) == (asked["x"].dtype, asked["x"].tolist())
        assert found.flags.writeable
    assert stackable(Reads(Column("x", "float", shape=(None,)), Column("z", "float"))) == set()
    deep = pa.table({"x": pa.array(rows.reshape(6, 2, 2).tolist(), pa.list_(pa.list_(pa.float32(), 2)))})
    assert table_columns(deep, as_stored={"x"})["x"].tolist() == rows.reshape(6, 2, 2).tolist()


@pytest.mark.parametrize("lengths", [[100], [50, 150]])
def test_lists_of_numbers_never_become_python_objects(lengths: list[int]) -> None:
    """An object and its place in a list take 32 bytes a value; the result takes 8, and the conversion another 8."""
    counts = np.resize(lengths, 1000)
    values = pa.array(np.zeros(counts.sum(), dtype=np.float32))
    column = pa.ListArray.from_arrays(pa.array(np.concatenate([[0], counts.cumsum()]), pa.int32()), values)
    tracemalloc.start()
    try:
        table_columns(pa.table({"x": column}))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * len(values)


PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)


def test_images_are_read_from_files_and_arrays() -> None:
    """A table with either has what a request would bring, one byte a pixel."""
    fixed = Reads(Column("x", "image", shape=(2, 2, 3)))
    files = pa.table({"x": png_files(PIXELS)})
    nested = pa.table({"x": pa.array(PIXELS.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8(), 3))))})
    for table in ({"x": PIXELS}, {"x": list(PIXELS)}, {"x": png_files(PIXELS)}, files, nested):
        array = conform(table_columns(table), fixed, place="the table")["x"]
        assert array.dtype == np.uint8
        assert np.array_equal(array, PIXELS)
    free = Reads(Column("x", "image", shape=(None, None, 3)))
    pieces = conform(table_columns({"x": [PIXELS[0], PIXELS[1, :1]]}), free, place="the table")["x"]
    assert [piece.shape for piece in pieces] == [(2, 2, 3), (1, 2, 3)]


@pytest.mark.parametrize("sizes", [[(2, 2), (1, 2)], [(2, 2), (2, 1)], [(2, 1), (1, 2)]])
def test_images_of_several_sizes_are_read_from_lists(sizes: list[tuple[int, int]]) -> None:
    """Of other heights, widths or both, one byte a pixel."""
    images = [np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3) for height, width in sizes]
    lists = pa.array([image.tolist() for image in images], pa.list_(pa.list_(pa.list_(pa.uint8()))))
    column = Column("x", "image", shape=(None, None, 3))
    read = conform(table_columns(pa.table({"x": lists})), Reads(column), place="the table")["x"]
    assert {image.dtype for image in read} == {np.dtype(np.uint8)}
    assert all(np.array_equal(one, other) for one, other in zip(read, images, strict=True))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (Column("x", "image", shape=(2, 2, 1)), PIXELS, r"holds in row 0 uint8 of shape \(2, 2, 3\)"),
        (Column("x", "image", shape=(2, 2, 3)), PIXELS.astype(int), "holds in row 0 int64"),
        (Column("x", "image", shape=(2, 3, 3)), png_files(PIXELS), "row 0: got an image of 2 x 2 pixels"),
        (Column("x", "image", shape=(2, 2, 3)), [b"a", b"b"], "row 0: got 1 bytes that are no PNG or JPEG"),
        (Column("x", "bytes"), ["a", "b"], "is a bytes, but in the table it holds str"),
        (Column("x", "bytes"), [b"a", None], "is missing 1 times"),
        (Column("x", "string"), [b"a", b"b"], "is a string, but in the table it holds bytes"),
        (Column("x", "datetime"), ["2024-01-01T00:00:00Z", "x"], "is a datetime, but in the table it holds str"),
        (Column("x", "datetime"), np.array(["2024-01-01", "NaT"], "M8[s]"), "is missing 1 times"),
        (Column("x", "float"), np.array(["2024-01-01", "2024-01-02"], "M8[s]"), "holds datetime64"),
    ],
)
def test_a_column_of_another_type_is_named(column: Column, values: object, message: str) -> None:
    """Before a request would be answered by a model that learnt something else."""
    with pytest.raises(RecipeError, match=message):
        conform(table_columns({"x": values}), Reads(column), place="the table")
