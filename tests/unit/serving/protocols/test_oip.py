from __future__ import annotations

import json

import numpy as np
import pytest
from protocol_fakes import RESPONDER, ROWS, SIGNATURE, answer, parse, predict, refused, tensors

from raymlops.arrays import Column
from raymlops.serving.protocols.native import PROTOCOL as NATIVE
from raymlops.serving.protocols.oip import PROTOCOL, metadata, server_metadata
from raymlops.serving.refusal import Refusal
from raymlops.signature import Signature


def body(inputs=None, **request) -> bytes:
    return json.dumps({"inputs": tensors() if inputs is None else inputs, **request}).encode()


def test_tensors_become_the_columns_of_the_rows():
    """The same arrays, of the same types, as native rows give."""
    columns = parse(PROTOCOL, body()).columns
    expected = parse(NATIVE, json.dumps({"rows": ROWS}).encode()).columns
    for name, array in expected.items():
        assert columns[name].dtype == array.dtype
        if name == "tokens":
            assert [piece.tolist() for piece in columns[name]] == [piece.tolist() for piece in array]
        else:
            np.testing.assert_array_equal(columns[name], array)


@pytest.mark.parametrize(
    "change",
    [
        {"x": {"shape": [4, 1]}},
        {"x": {"shape": [4, 1], "data": [[0.1], [1.1], [2.1], [3.1]]}},
        {"x": {"datatype": "FP32"}},
        {"x": {"datatype": "INT8", "data": [1, 2, 3, -4]}},
        {"n": {"datatype": "UINT64"}},
        {"k": {"datatype": "INT16"}},
        {"o": {"datatype": "BOOL", "data": [True, None, False, None]}},
        {"image": {"data": [0.5] * 16}},
        {"tokens": {"shape": [4, 0], "data": []}},
        {"tokens": {"shape": [4, 0], "data": [[], [], [], []]}},
    ],
)
def test_a_tensor_may_come_in_several_ways(change):
    """With a last dimension of 1, flat or nested, in another type that fits."""
    assert parse(PROTOCOL, body(tensors(change=change))).rows == 4


def test_float32_is_what_it_says():
    """0.1 as FP32 is the number next to it that FP32 has, whether it comes in JSON or as bytes."""
    columns = parse(PROTOCOL, body(tensors(change={"x": {"datatype": "FP32"}}))).columns
    assert columns["x"][0] == np.float64(np.float32(0.1))


def test_a_nullable_tensor_may_be_left_out():
    """As a nullable field may."""
    asked = parse(PROTOCOL, body(tensors(drop=("w", "k"))))
    assert np.isnan(asked.columns["w"]).all()
    assert np.isnan(asked.columns["k"]).all()


@pytest.mark.parametrize(
    ("change", "row", "field", "message"),
    [
        ({"x": {"datatype": "INT64"}}, None, "x", "expected the datatype FP16 or FP32"),
        ({"x": {"datatype": "fp64"}}, None, "x", "expected the datatype FP16 or FP32"),
        ({"n": {"datatype": "FP64"}}, None, "n", "expected the datatype INT8"),
        ({"b": {"datatype": "INT8"}}, None, "b", "expected the datatype BOOL"),
        ({"x": {"datatype": 7}}, None, "inputs[0]", "expected name and datatype to be strings"),
        ({"x": {"data": ["1", 2, 3, 4]}}, 0, "x", "expected FP64, got the string '1'"),
        ({"x": {"data": [1, [False], 3, 4]}}, 1, "x", "expected FP64, got an array"),
        ({"x": {"data": [[1, 2, 3, 4]]}}, None, "x", "expected data that is flat, or nested"),
        ({"x": {"data": [1, False, 3, 4]}}, 1, "x", "expected FP64, got false"),
        ({"x": {"data": [1, None, 3, 4]}}, 1, "x", "must not be null; expected a finite number"),
        ({"x": {"data": [1, float("nan"), 3, 4]}}, 1, "x", "expected a finite number, got nan"),
        ({"w": {"data": [1, float("inf"), 3, 4]}}, 1, "w", "expected a finite number or null, got inf"),
        ({"x": {"datatype": "FP32", "data": [1, 1e39, 3, 4]}}, 1, "x", "expected a finite number, got inf"),
        ({"x": {"datatype": "FP16", "data": [1, 2, 65520, 4]}}, 2, "x", "expected a finite number, got inf"),
        ({"n": {"data": [1, 2, 3, 2**63]}}, 3, "n", "expected INT64, got 9223372036854775808"),
        ({"n": {"data": [1.5, 2, 3, 4]}}, 0, "n", "expected INT64, got 1.5"),
        ({"n": {"datatype": "INT8", "data": [1, 2, 128, 4]}}, 2, "n", "expected INT8, got 128"),
        ({"n": {"datatype": "UINT8", "data": [1, -1, 3, 4]}}, 1, "n", "expected UINT8, got -1"),
        ({"n": {"datatype": "UINT64", "data": [1, 2**64 - 1, 3, 4]}}, 1, "n", "expected an integer, got 1844"),
        ({"k": {"data": [1.5, 2, 3, 4]}}, 0, "k", "expected an integer or null, got 1.5"),
        ({"b": {"data": [1, 0, 1, 0]}}, 0, "b", "expected BOOL, got 1"),
        ({"s": {"data": ["EWR", 1, "JFK", "JFK"]}}, 1, "s", "expected BYTES, got 1"),
        ({"s": {"data": ["EWR", "LGA", "JFK", "JFK"]}}, 1, "s", "unknown category 'LGA'"),
        ({"x": {"shape": [4, 2]}}, None, "x", "expected the shape [rows], got [4, 2]"),
        ({"x": {"shape": []}}, None, "x", "expected the shape [rows], got []"),
        ({"x": {"shape": [-4]}}, None, "x", "expected the shape [rows], got [-4]"),
        ({"x": {"shape": [4.0]}}, None, "x", "expected the shape to be a list of integers"),
        ({"x": {"shape": [True]}}, None, "x", "expected the shape to be a list of integers"),
        ({"x": {"shape": "4"}}, None, "x", "expected the shape to be a list of integers"),
        ({"x": {"shape": [3], "data": [1, 2, 3]}}, None, None, "columns differ in length: x 3, n 4"),
        ({"x": {"shape": [0], "data": []}}, None, None, "columns differ in length: x 0"),
        ({"x": {"data": [1, 2, 3]}}, None, "x", "the shape [4] has 4 elements, the data 3"),
        ({"x": {"data": [1, 2, 3, 4, 5]}}, None, "x", "the shape [4] has 4 elements, the data 5"),
        ({"x": {"data": {"0": 1}}}, None, "x", "expected the data to be a list"),
        ({"x": {"data": None}}, None, "x", 'neither "data" nor the parameter "binary_data_size" is given'),
        ({"x": {"parameters": []}}, None, "x", "expected the parameters to be an object"),
        ({"x": {"extra": 1}}, None, "extra", "inputs[0]: unknown key"),
        ({"x": {"name": "z"}}, None, "z", "unknown tensor; known: b, image, k, n, o, s, tokens, w, x"),
        ({"x": {"name": "n", "datatype": "INT64", "data": [1, 2, 3, 4]}}, None, "n", "the tensor is given twice"),
        ({"image": {"shape": [4, 2, 3]}}, None, "image", "expected the shape [rows, 2, 2], got [4, 2, 3]"),
        ({"image": {"shape": [4, 2, 2, 1]}}, None, "image", "expected the shape [rows, 2, 2]"),
        ({"image": {"data": [[[1, 2], [3]]] * 4}}, None, "image", "expected data that is flat, or nested"),
        ({"tokens": {"shape": [4, 2**62]}}, None, "tokens", "the shape has more elements than any request"),
        ({"tokens": {"shape": [4, 10**30]}}, None, "tokens", "expected the shape to be a list of integers"),
        ({"tokens": {"shape": [4, 2**40], "data": []}}, None, "tokens", "the shape has more elements than any request"),
    ],
)
def test_a_bad_tensor_is_named(change, row, field, message):
    """Always 422, with the tensor and, where there is one, the row."""
    found = refused(PROTOCOL, body(tensors(change=change)))
    assert (found.status, found.code) == (422, "invalid_rows")
    assert (found.problems[0].row, found.problems[0].field) == (row, field)
    assert found.problems[0].message.startswith(message)


def test_the_problems_of_all_tensors_come_together():
    """In the order of their rows."""
    change = {"x": {"data": [1, 2, 3, "4"]}, "n": {"data": [1, 2.5, 3, 4]}, "s": {"data": ["EWR", 1, "JFK", 2]}}
    found = refused(PROTOCOL, body(tensors(change=change)))
    assert [(problem.row, problem.field) for problem in found.problems] == [(1, "n"), (1, "s"), (3, "x"), (3, "s")]


def test_a_number_without_a_fraction_is_an_integer():
    """As JSON has one type of numbers."""
    asked = parse(PROTOCOL, body(tensors(change={"n": {"data": [1.0, 2, 3.0, 2**63 - 1]}})))
    assert asked.columns["n"].tolist() == [1, 2, 3, 2**63 - 1]


@pytest.mark.parametrize(
    ("request_", "status", "field"),
    [
        ({"inputs": []}, 422, None),
        ({"inputs": {}}, 422, "inputs"),
        ({"inputs": [1]}, 422, None),
        ({"inputs": [{"name": "x"}]}, 422, "shape"),
        ({}, 422, "inputs"),
        ({"inputs": tensors(drop=("x",))}, 422, "x"),
        ({"inputs": tensors(), "id": 7}, 422, "id"),
        ({"inputs": tensors(), "other": 7}, 422, "other"),
        ({"inputs": tensors(), "parameters": [1]}, 422, "parameters"),
        ({"inputs": tensors(), "parameters": {"binary_data_output": 1}}, 422, "parameters"),
        ({"inputs": tensors(), "outputs": {"name": "y"}}, 422, "outputs"),
        ({"inputs": tensors(), "outputs": ["y"]}, 422, None),
        ({"inputs": tensors(), "outputs": [{"name": 1}]}, 422, "outputs[0]"),
        ({"inputs": tensors(), "outputs": [{"name": "z"}]}, 422, "z"),
        ({"inputs": tensors(), "outputs": [{"name": "y"}, {"name": "y"}]}, 422, "y"),
        ({"inputs": tensors(), "outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]}, 422, "parameters"),
        ({"inputs": [{"name": "x", "datatype": "FP64", "shape": [101], "data": []}]}, 413, None),
    ],
)
def test_a_bad_request_is_refused(request_, status, field):
    """Whatever part of the document is wrong."""
    found = refused(PROTOCOL, json.dumps(request_).encode())
    assert found.status == status
    assert (found.problems[0].field if found.problems else None) == field


def test_the_answer_has_the_outputs_that_were_asked_for():
    """All of them with their types, or those that are named, in that order."""
    everything = json.loads(answer(PROTOCOL, body(id="any id \u00e9")).body)
    assert everything["id"] == "any id \u00e9"
    assert (everything["model_name"], everything["model_version"]) == ("wide", "7")
    types = {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in everything["outputs"]}
    assert types == {
        "y": ("FP64", [4]),
        "count": ("INT64", [4]),
        "maybe": ("FP64", [4]),
        "text": ("BYTES", [4]),
        "both": ("FP64", [4, 2]),
        "sure": ("BOOL", [4]),
        "open": ("FP64", [4]),
    }
    assert everything["outputs"][2]["data"] == [0.0, 2.0, None, 6.0]
    assert len(everything["outputs"][4]["data"]) == 8
    some = json.loads(answer(PROTOCOL, body(outputs=[{"name": "sure"}, {"name": "y", "parameters": {}}])).body)
    assert [tensor["name"] for tensor in some["outputs"]] == ["sure", "y"]
    assert some["id"] == "request-1"


@pytest.mark.parametrize(
    ("given", "usable"), [("abc", "abc"), ("a\nb", None), ("\u00e9", None), ("x" * 129, None), ("", None)]
)
def test_an_id_that_could_split_a_header_is_repeated_in_the_body_alone(given, usable):
    """The protocol's id may be any text; what stands in headers and logs may not."""
    asked = parse(PROTOCOL, body(id=given))
    assert asked.request_id == usable
    encoded = PROTOCOL.encode(predict(asked.columns), asked, RESPONDER, signature=SIGNATURE)
    assert json.loads(encoded.body)["id"] == given


def test_rows_whose_outputs_differ_in_shape_have_no_tensor():
    """They are refused with the way out."""
    signature = Signature((Column("x", "float"),), (Column("words", "int", shape=(None,)),))
    asked = parse(
        PROTOCOL, body([{"name": "x", "datatype": "FP64", "shape": [2], "data": [1, 2]}]), signature=signature
    )
    words = np.empty(2, dtype=object)
    words[0], words[1] = np.arange(2), np.arange(3)
    with pytest.raises(Refusal, match="one row at a time") as caught:
        PROTOCOL.encode({"words": words}, asked, RESPONDER, signature=signature)
    assert (caught.value.status, caught.value.code) == (422, "ragged_output")
    words[1] = np.arange(2)
    encoded = PROTOCOL.encode({"words": words}, asked, RESPONDER, signature=signature)
    assert json.loads(encoded.body)["outputs"][0] == {
        "name": "words",
        "datatype": "INT64",
        "shape": [2, 2],
        "data": [0, 1, 0, 1],
    }


def test_metadata_names_types_and_free_dimensions():
    """Rows are -1, as is a free dimension; a nullable int or bool is FP64, which has NaN."""
    described = metadata(SIGNATURE, "wide", ["7"])
    assert described["versions"] == ["7"]
    shapes = {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in described["inputs"]}
    assert shapes["image"] == ("FP64", [-1, 2, 2])
    assert shapes["tokens"] == ("INT64", [-1, -1])
    assert shapes["k"] == shapes["o"] == ("FP64", [-1])
    assert server_metadata()["extensions"] == ["binary_tensor_data"]
