from __future__ import annotations

import json
import math

import numpy as np
import pytest
from protocol_fakes import ROWS, SIGNATURE, answer, parse, refused

from raymlops.arrays import Column
from raymlops.serving.protocols.mlflow import PROTOCOL
from raymlops.serving.protocols.native import PROTOCOL as NATIVE
from raymlops.signature import Signature

CSV = {b"content-type": b"text/csv"}
PLAIN = Signature(
    inputs=(
        Column("x", "float"),
        Column("n", "int", nullable=True),
        Column("b", "bool"),
        Column("s", "string", nullable=True),
    ),
    outputs=(Column("y", "float"),),
)
SINGLE = Signature((Column("image", "float", shape=(2,)),), (Column("y", "float"),))
NAMES = list(ROWS[0])
SPLIT = {"columns": NAMES, "data": [[row[name] for name in NAMES] for row in ROWS]}


def body(**data) -> bytes:
    return json.dumps(data).encode()


@pytest.mark.parametrize(
    "data",
    [
        {"dataframe_split": SPLIT},
        {"dataframe_split": {**SPLIT, "index": [3, 2, 1, 0]}},
        {"dataframe_split": {"columns": NAMES[::-1], "data": [row[::-1] for row in SPLIT["data"]]}},
        {"dataframe_records": ROWS},
        {"instances": ROWS},
        {"inputs": ROWS},
        {"inputs": {name: [row[name] for row in ROWS] for name in NAMES}},
        {"dataframe_records": ROWS, "params": {"temperature": 1}},
        {"dataframe_records": ROWS, "params": None},
        {"dataframe_records": [{**row, "k": row["k"] and float(row["k"])} for row in ROWS]},
        {"dataframe_records": [{**row, "w": math.nan if row["w"] is None else row["w"]} for row in ROWS]},
        {"dataframe_split": {**SPLIT, "data": [[math.nan if v is None else v for v in row] for row in SPLIT["data"]]}},
    ],
)
def test_every_form_gives_the_columns_of_the_rows(data):
    """Also where pandas has written NaN for null and 7.0 for 7."""
    columns = parse(PROTOCOL, body(**data)).columns
    expected = parse(NATIVE, body(rows=ROWS)).columns
    for name, array in expected.items():
        assert columns[name].dtype == array.dtype
        np.testing.assert_array_equal(np.stack(list(columns[name])), np.stack(list(array)))


def test_the_answer_is_one_record_a_row():
    """As MLflow's server writes a DataFrame, but with null for what is missing."""
    data = json.loads(answer(PROTOCOL, body(dataframe_records=ROWS)).body)
    assert list(data) == ["predictions"]
    assert data["predictions"] == json.loads(answer(NATIVE, body(rows=ROWS)).body)["outputs"]


@pytest.mark.parametrize("form", ["inputs", "instances"])
def test_a_single_column_needs_no_name(form):
    """A list of values is the list of its rows."""
    asked = parse(PROTOCOL, json.dumps({form: [[1, 2], [3, 4]]}).encode(), signature=SINGLE)
    assert asked.columns["image"].tolist() == [[1, 2], [3, 4]]


def test_scalars_by_name_are_one_row():
    """As MLflow takes them."""
    asked = parse(PROTOCOL, body(inputs={"x": 1, "n": 2, "b": True, "s": "a"}), signature=PLAIN)
    assert asked.rows == 1


@pytest.mark.parametrize(
    ("data", "field", "message"),
    [
        ({}, None, "expected one of the keys dataframe_split, dataframe_records, instances, inputs, got none"),
        ({"inputs": ROWS, "instances": ROWS}, None, "expected one of the keys"),
        ({"inputs": ROWS, "signature_name": "x"}, "signature_name", "unknown key"),
        ({"messages": []}, "messages", "unknown key"),
        ({"inputs": ROWS, "params": [1]}, "params", "expected an object"),
        ({"inputs": ROWS, "params": False}, "params", "expected an object"),
        ({"dataframe_split": {**SPLIT, "index": {}}}, "index", "expected a list"),
        ({"inputs": 1}, "inputs", "expected values by name; the names are x, n"),
        ({"inputs": [[1, 2]]}, "inputs", "expected values by name"),
        ({"inputs": {"x": [1], "n": 1}}, "n", "expected a list of values, one per row"),
        ({"inputs": {"x": [1, 2], "n": [1]}}, None, "columns differ in length: x 2, n 1"),
        ({"inputs": {}}, None, "expected at least one row, got none"),
        ({"inputs": {"x": []}}, None, "expected at least one row, got none"),
        ({"dataframe_records": []}, None, "expected a non-empty list of rows"),
        ({"dataframe_records": {}}, "dataframe_records", "expected values by name"),
        ({"dataframe_records": [1]}, None, "expected an object of named fields, got 1"),
        ({"dataframe_records": [{**ROWS[0], "z": 1}]}, "z", "unknown field"),
        ({"dataframe_records": [{**ROWS[0], "x": "1"}]}, "x", "expected a finite number, got the string '1'"),
        ({"dataframe_records": [{**ROWS[0], "x": math.nan}]}, "x", "expected a finite number, got nan"),
        ({"dataframe_records": [{**ROWS[0], "n": 7.5}]}, "n", "expected an integer, got 7.5"),
        ({"dataframe_records": [{**ROWS[0], "b": 1}]}, "b", "expected true or false, got 1"),
        ({"dataframe_records": [{**ROWS[0], "image": [[math.nan, 0], [0, 0]]}]}, "image", "expected an array of shape"),
        ({"dataframe_split": []}, None, "dataframe_split: expected an object"),
        ({"dataframe_split": {"data": []}}, "columns", "dataframe_split: is missing"),
        ({"dataframe_split": {**SPLIT, "dtypes": 1}}, "dtypes", "dataframe_split: unknown key"),
        ({"dataframe_split": {**SPLIT, "columns": [1, 2]}}, "columns", "expected a list of names"),
        ({"dataframe_split": {**SPLIT, "columns": ["x", "x"]}}, "columns", "a name is given twice"),
        ({"dataframe_split": {**SPLIT, "data": {}}}, "data", "expected a list of rows"),
        ({"dataframe_split": {**SPLIT, "data": [1]}}, "data", "expected a list of rows"),
        ({"dataframe_split": {**SPLIT, "data": [[1]]}}, None, "expected 9 values, one per column, got 1"),
        ({"dataframe_split": {**SPLIT, "data": []}}, None, "expected at least one row, got none"),
        ({"dataframe_split": {"columns": ["x"], "data": [[1]]}}, "n", "is missing; expected an integer"),
        ({"dataframe_split": {"columns": [*NAMES, "z"], "data": [[*SPLIT["data"][0], 1]]}}, "z", "unknown field"),
    ],
)
def test_bad_data_is_named(data, field, message):
    """Always 422; MLflow's own server would turn some of these into numbers."""
    found = refused(PROTOCOL, body(**data))
    assert (found.status, found.problems[0].field) == (422, field)
    assert found.problems[0].message.startswith(message)


def test_values_nested_a_thousand_deep_are_refused():
    """By the check of their shape, not by Python's recursion limit."""
    deep = b"[" * 900 + b"]" * 900
    for data in (b'{"inputs": {"x": ' + deep + b"}}", b'{"dataframe_records": [{"x": ' + deep + b"}]}"):
        assert refused(PROTOCOL, data).status == 422


def test_too_many_rows_are_refused():
    """However they come."""
    many = {"columns": ["x"], "data": [[1]] * 101}
    for data in ({"dataframe_split": many}, {"inputs": {"x": [1] * 101}}, {"instances": [{}] * 101}):
        assert refused(PROTOCOL, body(**data)).status == 413
    text = b"x,n,b,s\n" + b"1,1,true,a\n" * 101
    assert refused(PROTOCOL, text, CSV, signature=PLAIN).status == 413


def test_csv_is_read_by_the_types_of_the_columns():
    """An empty cell is missing, a whole number an integer, a quoted text may hold commas."""
    text = b'x,s,b,n\r\n1,"a,b",True,7\r\n-2.5e3,,false,\r\n.5,"",TRUE,7.0\r\n'
    columns = parse(PROTOCOL, b"\xef\xbb\xbf" + text, CSV, signature=PLAIN).columns
    assert columns["x"].tolist() == [1.0, -2500.0, 0.5]
    assert columns["s"].tolist() == ["a,b", None, None]
    assert columns["b"].tolist() == [True, False, True]
    np.testing.assert_array_equal(columns["n"], [7, np.nan, 7])


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        (b"", 400, "the body is empty"),
        (b"x,n,b,s\n\xff", 400, "not UTF-8"),
        (b'x,n,b,s\n1,1,true,"a', 400, "not CSV"),
        (b"x,n,b,s\n" + b"1" * 200_000, 400, "not CSV"),
        (b"x,n,b,s\n", 422, "at least one row"),
        (b"x,n,b,s,\n1,1,true,a,1\n", 422, "unknown field"),
        (b"x,x,b,s\n1,1,true,a\n", 422, "given twice"),
        (b"x,n,b,s\n1,1,true\n", 422, "expected 4 values, one per column, got 3"),
        (b"x,n,b,s\none,1,true,a\n", 422, "expected a finite number, got the string 'one'"),
        (b"x,n,b,s\n1_0,1,true,a\n", 422, "expected a finite number, got the string '1_0'"),
        (b"x,n,b,s\ninf,1,true,a\n", 422, "expected a finite number, got the string 'inf'"),
        (b"x,n,b,s\n1e999,1,true,a\n", 422, "expected a finite number, got inf"),
        (b"x,n,b,s\n,1,true,a\n", 422, "must not be null"),
        (b"x,n,b,s\n1,1.5,true,a\n", 422, "expected an integer or null, got 1.5"),
        (b"x,n,b,s\n1," + b"9" * 5000 + b",true,a\n", 422, "expected an integer or null, got the string"),
        (b"x,n,b,s\n1,1,1,a\n", 422, "expected true or false, got the string '1'"),
    ],
)
def test_bad_csv_is_refused(text, status, message):
    """With what is wrong with it."""
    found = refused(PROTOCOL, text, CSV, signature=PLAIN)
    assert found.status == status
    assert message in found.message


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        (b"," * 200_000 + b"\n1", 422, "more than 24 fields; there are 4 columns"),
        (b'\n"x",n,b,s' + b"," * 21 + b"\n1", 422, "more than 24 fields"),
        (b"x,n,b,s" + b"," * 20 + b"\n1", 422, "given twice"),
        (b"x,n,b,s\n" + b"," * 200_000, 413, "more than 10600 values"),
        (b"x,n,b,s\n" + b"\n" * 200_000, 413, "more than 10600 values"),
    ],
)
def test_csv_with_too_many_values_is_refused_before_it_is_parsed(text, status, message):
    """4 columns: a header line may have 24 fields, and 100 rows (4 + 2) x 100 + 10,000 values."""
    found = refused(PROTOCOL, text, CSV, signature=PLAIN)
    assert (found.status, message in found.message) == (status, True)


def test_tensors_have_no_csv():
    """They are asked for in JSON."""
    assert "send JSON" in refused(PROTOCOL, b"x\n1\n", CSV, signature=SIGNATURE).message


@pytest.mark.parametrize(
    "kind", [b"application/vnd.apache.parquet", b"text/plain", b"application/json; charset=latin-1", b"\xff", b"a;b;c"]
)
def test_other_types_are_refused(kind):
    """415, whatever the body is."""
    found = refused(PROTOCOL, body(dataframe_records=ROWS), {b"content-type": kind})
    assert (found.status, found.code) == (415, "unsupported_type")


@pytest.mark.parametrize(
    "kind", [b"application/json", b"Application/JSON; charset=UTF-8", b"", b"application/json;v=1"]
)
def test_json_is_taken_under_each_of_its_names(kind):
    """Also without any."""
    assert parse(PROTOCOL, body(dataframe_records=ROWS), {b"content-type": kind}).rows == 4
