import json
import math
import pickle
import random

import jsonschema
import numpy as np
import pandas as pd
import pytest

from raymlops.arrays import Column, careful_array, known_texts, quick_array
from raymlops.errors import InvalidRowsError
from raymlops.signature import MAX_PROBLEMS, Signature

SIGNATURE = Signature(
    inputs=(
        Column("distance", "float", description="miles"),
        Column("hour", "int"),
        Column("wind", "float", nullable=True),
        Column("seats", "int", nullable=True),
        Column("carrier", "string", nullable=True, categories=("AA", "UA"), unknown="reject"),
        Column("weekend", "bool"),
        Column("delayed", "bool", nullable=True),
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
    "delayed": True,
    "image": [[1, 2], [3, 4]],
    "tokens": [1, 2, 3],
}


def problems(call):
    with pytest.raises(InvalidRowsError) as caught:
        call()
    return [(problem.row, problem.field, problem.message) for problem in caught.value.problems]


def test_rows_become_typed_arrays():
    """Each type has its dtype; what is missing is NaN, or None in text."""
    missing = dict.fromkeys(("wind", "seats", "carrier", "delayed"))
    columns = SIGNATURE.parse_rows([ROW, {**ROW, **missing, "tokens": []}])
    dtypes = {name: str(array.dtype) for name, array in columns.items()}
    assert dtypes == {
        "distance": "float64",
        "hour": "int64",
        "wind": "float64",
        "seats": "float64",
        "carrier": "object",
        "weekend": "bool",
        "delayed": "float64",
        "image": "float64",
        "tokens": "object",
    }
    assert columns["image"].shape == (2, 2, 2)
    assert [tokens.tolist() for tokens in columns["tokens"]] == [[1, 2, 3], []]
    assert math.isnan(columns["wind"][1])
    assert math.isnan(columns["seats"][1])
    assert str(columns["delayed"].tolist()) == "[1.0, nan]"
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
        ({"hour": 1.5}, "hour", "expected an integer, got 1.5"),
        ({"hour": float(2**63)}, "hour", "expected an integer, got 9.22337203685477"),
        ({"seats": 0.5}, "seats", "expected an integer or null, got 0.5"),
        ({"tokens": [1, 2.5]}, "tokens", "expected an array of shape (any) of int, got an element 2.5"),
        ({"hour": 2**63}, "hour", "expected an integer, got 9223372036854775808"),
        ({"weekend": 1}, "weekend", "expected true or false, got 1"),
        ({"weekend": None}, "weekend", "must not be null; expected true or false"),
        ({"delayed": 1.0}, "delayed", "expected true or false or null, got 1.0"),
        ({"carrier": 3}, "carrier", "expected a string or null, got 3"),
        ({"carrier": "ZZ"}, "carrier", "unknown category 'ZZ'; known: AA, UA"),
        ({"image": [[1, 2]]}, "image", "expected an array of shape (2, 2) of float, got a dimension of length 1"),
        ({"image": 3}, "image", "expected an array of shape (2, 2) of float, got 3"),
        ({"image": [[1, 2], [3, None]]}, "image", "expected an array of shape (2, 2) of float, got an element null"),
        ({"tokens": [1, [2]]}, "tokens", "expected an array of shape (any) of int, got an element an array"),
        ({"extra": 1}, "extra", "unknown field; known: carrier, delayed, distance"),
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


def test_the_first_wrong_row_is_complete():
    """Its problem in the last column is there, although the first column alone has more than are reported."""
    rows = [{**ROW, "distance": "x", "tokens": 1}, *[{**ROW, "distance": "x"}] * 50]
    found = problems(lambda: SIGNATURE.parse_rows(rows))
    assert len(found) == MAX_PROBLEMS
    assert [field for row, field, _ in found if row == 0] == ["distance", "tokens"]


def test_a_number_without_a_fraction_is_an_integer():
    """JSON has one type of numbers; those beside them keep all their digits."""
    rows = [{**ROW, "hour": 7.0, "seats": 3.0, "tokens": [1.0, 2]}, {**ROW, "hour": 2**63 - 1, "seats": None}]
    columns = SIGNATURE.parse_rows(rows)
    assert (columns["hour"].dtype, columns["hour"].tolist()) == (np.int64, [7, 2**63 - 1])
    assert columns["seats"][0] == 3.0
    assert (columns["tokens"][0].dtype, columns["tokens"][0].tolist()) == (np.int64, [1, 2])


@pytest.mark.parametrize(
    ("column", "good", "bad", "got"),
    [
        (Column("x", "string", max_length=3), "abc", "abcd", "characters, got 4"),
        (Column("x", "string", nullable=True, max_length=3), None, "abcd", "characters, got 4"),
        (Column("x", "bytes", max_length=3), "YWJj", "YWJjZA==", "bytes, got 4"),
        (Column("x", "int", shape=(None,), max_length=3), [1, 2, 3], [1] * 4, "elements a dimension, got 4"),
        (Column("x", "float", shape=(None, None), max_length=3), [[1]], [[1] * 4], "elements a dimension, got 4"),
        (Column("x", "float", shape=(None, 5), max_length=3), [[1] * 5], [[1] * 5] * 4, "elements a dimension, got 4"),
    ],
)
def test_values_may_have_a_largest_length(column, good, bad, got):
    """In every way by which they come, and as the schema says; a dimension of fixed length has no other bound."""
    signature = Signature((column,), (Column("y", "float"),))
    signature.parse_rows([{"x": good}])
    expected = [(1, "x", f"expected at most 3 {got}")]
    assert problems(lambda: signature.parse_rows([{"x": good}, {"x": bad}])) == expected
    assert problems(lambda: signature.parse_columns({"x": [good, bad]})) == expected
    assert [jsonschema.Draft202012Validator(column.json_schema()).is_valid(value) for value in (good, bad)] == [1, 0]
    if column.shape:
        found = problems(lambda: signature.parse_arrays({"x": np.array([bad])}))
        assert found == [(None, "x", f"expected at most 3 {got}")]


def test_an_unknown_field_does_not_hide_wrong_types():
    """Rows come in order, each with its unknown fields first, and the wrong values of all rows beside them."""
    rows = [{**ROW, "hour": "y"}, {**ROW, "extra": 1, "distance": "x"}]
    found = problems(lambda: SIGNATURE.parse_rows(rows))
    assert [(row, field) for row, field, _ in found] == [(0, "hour"), (1, "extra"), (1, "distance")]
    many = problems(lambda: SIGNATURE.parse_rows(rows[1:] * 10_000))
    assert len(many) == MAX_PROBLEMS
    assert {field for _, field, _ in many} == {"extra", "distance"}


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
        ({"hour": 1.0, "seats": 2.0, "tokens": [3.0, 4]}, True),
        ({"hour": 2**63 - 1}, True),
        ({"hour": 2**63}, False),
        ({"seats": -(2**63) - 1}, False),
        ({"distance": 2**63}, True),
        ({"distance": 10**400}, False),
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
        {"name": "x", "type": "bool", "shape": (2,), "nullable": True},
        {"name": "x", "type": "float", "shape": (2,), "nullable": True},
        {"name": "x", "type": "float", "shape": (2,), "max_length": 3},
        {"name": "x", "type": "string", "max_length": 0},
    ],
)
def test_an_impossible_column_is_refused(options):
    """No name, no such type, text with a shape, a missing tensor."""
    with pytest.raises(ValueError):
        Column(**options)


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ((Column("x", "float"), Column("y", "string")), 2),
        ((Column("x", "float", shape=(2, 3)), Column("y", "image", shape=(None, None, 3))), 7),
        ((Column("x", "float", shape=(None, 3)),), None),
        ((Column("x", "float", shape=(None, 3), max_length=5),), 15),
    ],
)
def test_a_row_has_so_many_values_in_json(columns, values):
    """An image is one; a free dimension has no bound of its own."""
    signature = Signature(columns, (Column("y", "float"),))
    assert signature.values_per_row == values
    assert signature.endless == (("x",) if values is None else ())


def test_names_are_unique_and_both_sides_have_columns():
    """Two columns of one name, or none, make no signature."""
    with pytest.raises(ValueError, match="its own name"):
        Signature((Column("x", "float"), Column("x", "int")), (Column("y", "float"),))
    with pytest.raises(ValueError, match="at least one column"):
        Signature((Column("x", "float"),), ())


def test_rows_of_a_nullable_int_or_bool_column_are_taken_back():
    """Its array is float64; its JSON rows hold integers, or truth values, and null, which ``parse_rows`` takes."""
    signature = Signature((Column("n", "int", nullable=True), Column("b", "bool", nullable=True)), SIGNATURE.outputs)
    arrays = {"n": np.array([3.0, np.nan, 4.0]), "b": np.array([1.0, 0.0, np.nan])}
    rows = signature.rows(arrays)
    assert json.dumps(rows) == '[{"n": 3, "b": true}, {"n": null, "b": false}, {"n": 4, "b": null}]'
    for taken in (signature.parse_rows(rows), signature.parse_columns(arrays | {"b": [True, False, None]})):
        assert all(_same(taken[name], array) for name, array in arrays.items())


def test_flags_of_a_frame_may_be_missing():
    """As pandas has them, ``boolean`` with NA or objects with None or NaN; the numbers 1 and 0 are none."""
    signature = Signature((Column("b", "bool", nullable=True),), SIGNATURE.outputs)
    for flags in (pd.array([True, None], "boolean"), np.array([True, None], object), [True, math.nan]):
        assert _same(signature.parse_columns({"b": pd.Series(flags)})["b"], np.array([1.0, np.nan]))
    assert problems(lambda: signature.parse_columns({"b": pd.Series([1.0, 0.0])}))[0][:2] == (0, "b")


def _value(rng, column):
    """Return a value for a column, often a wrong one."""
    wrong = rng.random() < 0.02
    if wrong:
        return rng.choice(
            [None, True, "1", 1.0, 7, math.nan, math.inf, 1e308, 2**62, 2**63, 2**64, 10**400, [], [1], {}]
        )
    if column.shape == (2, 2):
        return [[rng.random(), 1], [rng.randrange(9), 2]]
    if column.shape:
        return [rng.randrange(2**40) for _ in range(rng.randrange(4))]
    if column.nullable and rng.random() < 0.2:
        return None
    return {
        "float": lambda: rng.choice([rng.random(), rng.randrange(9), 1e300, -0.0]),
        "int": lambda: rng.randrange(-(2**63), 2**63),
        "bool": lambda: rng.random() < 0.5,
        "string": lambda: rng.choice(["AA", "UA"]),
    }[column.type]()


def _same(one, other):
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.dtype == object and len(one) and isinstance(one[0], np.ndarray):
        return all(_same(a, b) for a, b in zip(one, other, strict=True))
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


@pytest.mark.parametrize("seed", range(300))
def test_the_quick_way_gives_what_the_careful_one_gives(seed):
    """Random rows, right and wrong: the same arrays, or the same problems."""
    rng = random.Random(seed)
    rows = [{column.name: _value(rng, column) for column in SIGNATURE.inputs} for _ in range(rng.choice((1, 2, 9)))]
    for row in rows:
        for name in [name for name in row if rng.random() < 0.02]:
            del row[name]
    careful, expected = {}, []
    for column in SIGNATURE.inputs:
        values = [row.get(column.name, column.absent) for row in rows]
        careful[column.name] = careful_array(column, values, found := [])
        quick = quick_array(column, values, known_texts(column))
        assert quick is None or (found == [] and _same(quick, careful[column.name]))
        expected += found
    if expected:
        in_order = sorted(expected, key=lambda problem: problem.row)
        assert problems(lambda: SIGNATURE.parse_rows(rows)) == [(p.row, p.field, p.message) for p in in_order]
    else:
        assert all(_same(array, careful[name]) for name, array in SIGNATURE.parse_rows(rows).items())


def test_most_rows_go_the_quick_way():
    """Right values, also missing ones, are not read one by one."""
    rows = [ROW, {**ROW, "wind": None, "seats": None, "carrier": None, "tokens": []}]
    for column in SIGNATURE.inputs:
        assert quick_array(column, [row[column.name] for row in rows], known_texts(column)) is not None


def test_a_field_that_no_column_has_is_found_among_good_rows():
    """Also where another row lacks a nullable one, so that the number of fields is right."""
    short = {name: value for name, value in ROW.items() if name != "wind"}
    assert problems(lambda: SIGNATURE.parse_rows([short, {**ROW, "extra": 1}]))[0][:2] == (1, "extra")
    assert problems(lambda: SIGNATURE.parse_rows([{**short, "extra": 1}]))[0][:2] == (0, "extra")


def test_a_signature_that_has_read_rows_is_still_the_same_value():
    """What it reads with is neither compared nor sent."""
    signature = Signature(SIGNATURE.inputs, SIGNATURE.outputs)
    signature.parse_rows([ROW])
    assert signature == Signature.from_dict(signature.to_dict())
    assert hash(signature) == hash(SIGNATURE)
    assert _same(pickle.loads(pickle.dumps(signature)).parse_rows([ROW])["hour"], np.array([7]))


@pytest.mark.parametrize(
    ("value", "shape"),
    [([[1, 2], [3, 4]], (2, 2)), ([], (0, 0)), ([[], []], (2, 0))],
)
def test_two_free_dimensions_are_rectangular(value, shape):
    """Also where there is nothing in them."""
    signature = Signature((Column("x", "int", shape=(None, None)),), (Column("y", "float"),))
    assert signature.parse_rows([{"x": value}])["x"][0].shape == shape


def test_inner_lists_of_different_lengths_are_refused():
    """numpy would raise an error of its own."""
    signature = Signature((Column("x", "int", shape=(None, None)),), (Column("y", "float"),))
    ((row, field, message),) = problems(lambda: signature.parse_rows([{"x": [[1]]}, {"x": [[1], [1, 2]]}]))
    assert (row, field) == (1, "x")
    assert message.endswith("got inner arrays of different lengths")


ARRAYS = {
    "distance": np.array([1, 2], dtype=np.float32),
    "hour": np.array([7, 8], dtype=np.int8),
    "wind": np.array([1.0, np.nan]),
    "seats": np.array([3.0, np.nan]),
    "carrier": np.array(["AA", None], dtype=object),
    "weekend": np.array([True, False]),
    "delayed": np.array([1.0, np.nan]),
    "image": np.zeros((2, 2, 2)),
    "tokens": np.array([[1, 2], [3, 4]]),
}


def test_whole_arrays_become_the_columns_of_rows():
    """The same types, writable even where the given array is not."""
    frozen = {name: array.copy() for name, array in ARRAYS.items()}
    for array in frozen.values():
        array.setflags(write=False)
    columns = SIGNATURE.parse_arrays(frozen)
    rows = [
        {**ROW, "distance": 1, "hour": 7, "wind": 1.0, "seats": 3, "image": [[0, 0], [0, 0]], "tokens": [1, 2]},
        {**ROW, "distance": 2, "hour": 8, "wind": None, "seats": None, "carrier": None, "weekend": False}
        | {"delayed": None, "image": [[0, 0], [0, 0]], "tokens": [3, 4]},
    ]
    for name, array in SIGNATURE.parse_rows(rows).items():
        assert _same(columns[name], array), name
        assert columns[name].flags.writeable


def test_nullable_arrays_may_be_left_out():
    """They are missing in every row."""
    some = {name: array for name, array in ARRAYS.items() if name not in {"wind", "seats", "carrier"}}
    columns = SIGNATURE.parse_arrays(some)
    assert np.isnan(columns["seats"]).all()
    assert columns["carrier"].tolist() == [None, None]


@pytest.mark.parametrize(
    ("change", "row", "field", "message"),
    [
        ({"distance": np.array([1.0, np.nan])}, 1, "distance", "expected a finite number, got nan"),
        ({"wind": np.array([1.0, np.inf])}, 1, "wind", "expected a finite number or null, got inf"),
        ({"distance": np.array([True, False])}, None, "distance", "expected float values, got bool"),
        ({"distance": np.array(["1", "2"])}, None, "distance", "expected float values, got <U1"),
        ({"distance": np.array([1, 2], dtype=object)}, None, "distance", "expected float values, got object"),
        ({"hour": np.array([1.0, 2.0])}, None, "hour", "expected int values, got float64"),
        (
            {"hour": np.array([1, 2**64 - 1], dtype=np.uint64)},
            1,
            "hour",
            "expected an integer, got 18446744073709551615",
        ),
        ({"seats": np.array([1.5, np.nan])}, 0, "seats", "expected an integer or null, got 1.5"),
        ({"seats": np.array([1.0, 2.0**63])}, 1, "seats", "expected an integer or null, got 9.22"),
        ({"delayed": np.array([1.0, 0.5])}, 1, "delayed", "expected true or false or null, got 0.5"),
        ({"weekend": np.array([1.0, 0.0])}, None, "weekend", "expected bool values, got float64"),
        ({"carrier": np.array(["AA", 1], dtype=object)}, 1, "carrier", "expected a string or null, got 1"),
        ({"carrier": np.array(["AA", "ZZ"])}, 1, "carrier", "unknown category 'ZZ'"),
        ({"image": np.zeros((2, 2))}, None, "image", "expected the shape (rows, 2, 2), got (2, 2)"),
        ({"image": np.full((2, 2, 2), np.inf)}, 0, "image", "expected an array of shape (2, 2) of float, got inf"),
        ({"tokens": np.zeros(2, dtype=int)}, None, "tokens", "expected the shape (rows, any), got (2,)"),
        ({"hour": np.array([1])}, None, None, "columns differ in length: distance 2, hour 1"),
        ({"extra": np.array([1, 2])}, None, "extra", "unknown field"),
        ({"hour": None}, None, "hour", "is missing; expected an integer"),
    ],
)
def test_whole_arrays_are_checked(change, row, field, message):
    """As strictly as JSON values are."""
    data = {name: array for name, array in (ARRAYS | change).items() if array is not None}
    assert problems(lambda: SIGNATURE.parse_arrays(data))[0][:2] == (row, field)
    assert problems(lambda: SIGNATURE.parse_arrays(data))[0][2].startswith(message)


@pytest.mark.parametrize("data", [{}, {"hour": np.zeros(0, dtype=int)}, {"hour": np.array(1)}])
def test_no_rows_are_refused(data):
    """Nothing given, nothing in it, or no first axis."""
    assert problems(lambda: SIGNATURE.parse_arrays(data))[0] == (None, None, "expected at least one row, got none")


def test_columns_nested_without_end_are_refused():
    """The check of shapes comes to an end before Python's recursion does."""
    deep = 0
    for _ in range(2000):
        deep = [deep]
    data = {name: [value] for name, value in ROW.items()} | {"image": [deep]}
    assert problems(lambda: SIGNATURE.parse_columns(data))[0][:2] == (0, "image")


def test_a_frame_of_arrays_may_hold_lists_of_numpy_numbers():
    """As a DataFrame does whose cells were made by ``list(array)``."""
    signature = Signature(inputs=(Column("v", "float", shape=(2,)),), outputs=(Column("y", "float"),))
    cells = [list(np.float32([1, 2])), list(np.float32([3, 4]))]
    assert signature.parse_columns({"v": cells})["v"].tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_an_array_beside_a_null_is_a_problem_of_its_row():
    """And no comparison of an array with None."""
    signature = Signature(inputs=(Column("x", "float", nullable=True),), outputs=(Column("y", "float"),))
    with pytest.raises(InvalidRowsError, match="row 1"):
        signature.parse_columns({"x": [None, np.zeros(2)]})
