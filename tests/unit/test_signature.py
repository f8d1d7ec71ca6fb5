import json
import math

import jsonschema
import numpy as np
import pytest

from raymlops.errors import InvalidRowsError
from raymlops.signature import MAX_PROBLEMS, Column, Signature

SIGNATURE = Signature(
    inputs=(
        Column("distance", "float", description="miles"),
        Column("hour", "int"),
        Column("wind", "float", nullable=True),
        Column("seats", "int", nullable=True),
        Column("carrier", "string", nullable=True, categories=("AA", "UA"), unknown="reject"),
        Column("weekend", "bool"),
        Column("image", "float", shape=(2, 2)),
        Column("tokens", "int", shape=(None,)),
    ),
    outputs=(Column("late", "float"),),
)
ROW = {
    "distance": 1,
    "hour": 7,
    "wind": 2.5,
    "seats": 100,
    "carrier": "AA",
    "weekend": True,
    "image": [[1, 2], [3, 4]],
    "tokens": [1, 2, 3],
}


def problems(call):
    with pytest.raises(InvalidRowsError) as caught:
        call()
    return [(problem.row, problem.field, problem.message) for problem in caught.value.problems]


def test_rows_become_typed_arrays():
    """Each type has its dtype; what is missing is NaN, or None in text."""
    columns = SIGNATURE.parse_rows([ROW, {**ROW, "wind": None, "seats": None, "carrier": None, "tokens": []}])
    dtypes = {name: str(array.dtype) for name, array in columns.items()}
    assert dtypes == {
        "distance": "float64",
        "hour": "int64",
        "wind": "float64",
        "seats": "float64",
        "carrier": "object",
        "weekend": "bool",
        "image": "float64",
        "tokens": "object",
    }
    assert columns["image"].shape == (2, 2, 2)
    assert [tokens.tolist() for tokens in columns["tokens"]] == [[1, 2, 3], []]
    assert math.isnan(columns["wind"][1])
    assert math.isnan(columns["seats"][1])
    assert columns["carrier"].tolist() == ["AA", None]


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"distance": "1"}, "distance", "expected a finite number, got the string '1'"),
        ({"distance": True}, "distance", "expected a finite number, got true"),
        ({"distance": math.nan}, "distance", "expected a finite number, got nan"),
        ({"distance": None}, "distance", "must not be null; expected a finite number"),
        ({"distance": 10**400}, "distance", "expected a finite number, got 1000"),
        ({"wind": math.inf}, "wind", "expected a finite number or null, got inf"),
        ({"hour": 1.0}, "hour", "expected an integer, got 1.0"),
        ({"hour": 2**63}, "hour", "expected an integer, got 9223372036854775808"),
        ({"weekend": 1}, "weekend", "expected true or false, got 1"),
        ({"carrier": 3}, "carrier", "expected a string or null, got 3"),
        ({"carrier": "ZZ"}, "carrier", "unknown category 'ZZ'; known: AA, UA"),
        ({"image": [[1, 2]]}, "image", "expected an array of shape (2, 2) of float, got a dimension of length 1"),
        ({"image": 3}, "image", "expected an array of shape (2, 2) of float, got 3"),
        ({"image": [[1, 2], [3, None]]}, "image", "expected an array of shape (2, 2) of float, got an element null"),
        ({"tokens": [1, [2]]}, "tokens", "expected an array of shape (any) of int, got an element an array"),
        ({"extra": 1}, "extra", "unknown field; known: carrier, distance"),
    ],
)
def test_a_value_must_have_its_json_type(change, field, message):
    """The problem names row and field, what was expected and what came."""
    (found,) = problems(lambda: SIGNATURE.parse_rows([ROW, {**ROW, **change}]))
    assert found[:2] == (1, field)
    assert found[2].startswith(message)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "got an empty list"),
        ({}, "got an object"),
        (None, "got null"),
        ("x", "got the string 'x'"),
    ],
)
def test_rows_are_a_list(rows, message):
    """Anything else concerns the whole request."""
    ((row, field, text),) = problems(lambda: SIGNATURE.parse_rows(rows))
    assert (row, field) == (None, None)
    assert message in text


def test_a_row_is_an_object_and_complete():
    """A list in place of an object, and a field that is not there."""
    assert problems(lambda: SIGNATURE.parse_rows([[1]]))[0] == (
        0,
        None,
        "expected an object of named fields, got an array",
    )
    row = {name: value for name, value in ROW.items() if name != "hour"}
    assert problems(lambda: SIGNATURE.parse_rows([row])) == [(0, "hour", "is missing; expected an integer")]


def test_a_nullable_field_may_be_left_out():
    """Missing is missing, written as null or not at all."""
    row = {name: value for name, value in ROW.items() if name not in {"wind", "seats", "carrier"}}
    assert math.isnan(SIGNATURE.parse_rows([row])["wind"][0])


def test_problems_are_few():
    """A request of ten thousand bad rows is answered with twenty problems."""
    bad = [{**ROW, "distance": "x", "hour": "y"}] * 10_000
    assert len(problems(lambda: SIGNATURE.parse_rows(bad))) == MAX_PROBLEMS


def test_several_fields_are_told_together():
    """Two bad fields of one row come in one error."""
    found = problems(lambda: SIGNATURE.parse_rows([{**ROW, "distance": "x", "hour": "y"}]))
    assert [field for _, field, _ in found] == ["distance", "hour"]


def test_columns_are_read_as_rows_are():
    """Arrays and lists side by side; NaN is missing, 7.0 is an integer, a length that differs is an error."""
    data = {name: [value, value] for name, value in ROW.items()}
    data |= {"distance": np.array([1.0, 2.0]), "wind": np.array([1.0, np.nan]), "hour": [7.0, 8.0]}
    columns = SIGNATURE.parse_columns(data)
    assert columns["hour"].tolist() == [7, 8]
    assert math.isnan(columns["wind"][1])
    assert problems(lambda: SIGNATURE.parse_columns({**data, "hour": [1]}))[0][2].startswith("columns differ in length")
    nan = {**data, "distance": np.array([1.0, np.nan])}
    assert problems(lambda: SIGNATURE.parse_columns(nan)) == [(1, "distance", "expected a finite number, got nan")]


def test_rows_and_columns_are_inverse():
    """What ``rows`` writes is JSON, and ``parse_rows`` reads the same arrays from it."""
    columns = SIGNATURE.parse_rows([ROW, {**ROW, "wind": None, "carrier": None}])
    rows = json.loads(json.dumps(SIGNATURE.rows(columns)))
    assert rows[1]["wind"] is None
    assert rows[0]["tokens"] == [1, 2, 3]
    again = SIGNATURE.parse_rows([{**row, "seats": int(row["seats"])} for row in rows])
    for name in ("distance", "hour", "wind", "weekend", "image"):
        np.testing.assert_array_equal(columns[name], again[name])


def test_a_signature_survives_json():
    """Stored signatures come back equal; keys of a newer version are ignored."""
    data = json.loads(json.dumps(SIGNATURE.to_dict()))
    data["inputs"][0]["from_the_future"] = 1
    assert Signature.from_dict(data) == SIGNATURE


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({}, True),
        ({"carrier": None}, True),
        ({"carrier": "ZZ"}, False),
        ({"image": [[1]]}, False),
        ({"hour": 1.5}, False),
    ],
)
def test_json_schema_agrees_with_the_parser(change, good):
    """The schema that OpenAPI shows accepts and refuses the same rows."""
    schema = {"properties": {column.name: column.json_schema() for column in SIGNATURE.inputs}}
    row = {**ROW, **change}
    assert jsonschema.Draft202012Validator(schema).is_valid(row) is good
    if good:
        SIGNATURE.parse_rows([row])
    else:
        assert problems(lambda: SIGNATURE.parse_rows([row]))


@pytest.mark.parametrize(
    "options",
    [
        {"name": "", "type": "float"},
        {"name": "x", "type": "double"},
        {"name": "x", "type": "string", "shape": (2,)},
        {"name": "x", "type": "bool", "nullable": True},
        {"name": "x", "type": "float", "shape": (2,), "nullable": True},
    ],
)
def test_an_impossible_column_is_refused(options):
    """No name, no such type, text with a shape, a missing bool or tensor."""
    with pytest.raises(ValueError):
        Column(**options)


def test_names_are_unique_and_both_sides_have_columns():
    """Two columns of one name, or none, make no signature."""
    with pytest.raises(ValueError, match="its own name"):
        Signature((Column("x", "float"), Column("x", "int")), (Column("y", "float"),))
    with pytest.raises(ValueError, match="at least one column"):
        Signature((Column("x", "float"),), ())


def test_rows_of_a_nullable_int_column_are_taken_back():
    """Its array is float64; its JSON rows hold integers and null, which ``parse_rows`` takes."""
    signature = Signature((Column("n", "int", nullable=True),), (Column("y", "float"),))
    rows = signature.rows({"n": np.array([3.0, np.nan])})
    assert rows == [{"n": 3}, {"n": None}]
    assert signature.parse_rows(rows)["n"].tolist()[0] == 3.0
