import hashlib
import math
from datetime import UTC, datetime

import numpy as np
import pytest
from served_requests import SIGNATURE, at, served

from raymlops.arrays import Column
from raymlops.predictions.paths import prediction_folder
from raymlops.predictions.schema import to_tables
from raymlops.predictions.spool import encode
from raymlops.signature import Signature


def ragged(*arrays):
    column = np.empty(len(arrays), dtype=object)
    for index, array in enumerate(arrays):
        column[index] = np.array(array)
    return column


ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # SHA-256 of abc, FIPS 180-2 B.1


def only(tables):
    (table,) = tables.values()
    table.validate(full=True)
    return table


def test_a_request_becomes_one_row_for_each_of_its_rows():
    """What is said once a request is repeated; rows count from 0 in each."""
    first = served("a", rows=2, key_id="k1", caller="shop")
    second = served("b", fallback_from=4, route="shadow", difference=math.inf, ts=at(1))
    rows = only(to_tables([first, second], SIGNATURE, name="flights")).to_pylist()
    assert [(row["request_id"], row["row"]) for row in rows] == [("a", 0), ("a", 1), ("b", 0)]
    assert rows[1] | {"ts": rows[1]["ts"].isoformat()} == {
        "request_id": "a",
        "row": 1,
        "ts": "2026-11-25T12:00:00+00:00",
        "model": "flights",
        "model_version": 3,
        "route": "champion",
        "protocol": "native",
        "status": 200,
        "seconds": 0.25,
        "model_seconds": 0.125,
        "key_id": "k1",
        "caller": "shop",
        "fallback_from": None,
        "difference": None,
        "weight": 1.0,
        "features": {"distance": 1.5, "carrier": "AA"},
        "output": {"late": 1.0},
    }
    assert (rows[2]["fallback_from"], rows[2]["difference"], rows[2]["key_id"]) == (4, math.inf, None)


@pytest.mark.parametrize(
    ("column", "array", "expected"),
    [
        (Column("x", "float"), np.array([0.5, 2.0]), [0.5, 2.0]),
        (Column("x", "float"), np.array([1, 2], dtype=np.int32), [1.0, 2.0]),
        (Column("x", "float", nullable=True), np.array([0.5, math.nan]), [0.5, None]),
        (Column("x", "int"), np.array([2**62, -1]), [2**62, -1]),
        (Column("x", "int", nullable=True), np.array([7.0, math.nan]), [7, None]),
        (Column("x", "bool"), np.array([True, False]), [True, False]),
        (Column("x", "bool", nullable=True), np.array([1.0, math.nan]), [True, None]),
        (Column("x", "bool", nullable=True), np.array([1.0, 0.0]), [True, False]),
        (Column("x", "string", nullable=True), np.array(["ä", None], dtype=object), ["ä", None]),
        (Column("x", "string"), np.array(["a", "\ud800"], dtype=object), ["a", "?"]),
        (
            Column("x", "datetime", nullable=True),
            np.array(["2026-11-25T12:00:00.5", "NaT"], dtype="datetime64[us]"),
            [datetime(2026, 11, 25, 12, 0, 0, 500_000, tzinfo=UTC), None],
        ),
        (Column("x", "bytes", nullable=True), np.array([b"abc", None], dtype=object), [f"sha256:{ABC} 3", None]),
        (
            Column("x", "image", shape=(1, 3, 1)),
            np.array([[[[97], [98], [99]]], [[[0], [0], [0]]]], dtype=np.uint8),
            [f"sha256:{ABC} 3", f"sha256:{hashlib.sha256(bytes(3)).hexdigest()} 3"],
        ),
        (
            Column("x", "image", shape=(None, None, 1)),
            ragged(np.array([[[97], [98], [99]]], dtype=np.uint8), np.zeros((1, 1, 1), dtype=np.uint8)),
            [f"sha256:{ABC} 3", f"sha256:{hashlib.sha256(bytes(1)).hexdigest()} 1"],
        ),
        (Column("x", "int", shape=(2, 1)), np.array([[[1], [2]], [[3], [4]]]), [[[1], [2]], [[3], [4]]]),
        (Column("x", "float", shape=(0,)), np.zeros((2, 0)), [[], []]),
        (Column("x", "float", shape=(None,)), ragged([1.0], [2.0, 3.0]), [[1.0], [2.0, 3.0]]),
        (Column("x", "bool", shape=(None, 2)), ragged([], [[True, False]]), [[], [[True, False]]]),
        (Column("x", "int", shape=(2, None)), ragged([[1], [2]], [[], []]), [[[1], [2]], [[], []]]),
    ],
    ids=str,
)
def test_every_kind_of_column_is_typed_by_the_signature(column, array, expected):
    """In inputs and outputs, from one request or several; missing values are null, tensors are lists.

    Of bytes and images the log keeps digest and length, not the values.
    """
    signature = Signature(inputs=(column,), outputs=(column,))
    whole = served(rows=2, columns={"x": array}, outputs={"x": array})
    halves = [served(columns={"x": array[i : i + 1]}, outputs={"x": array[i : i + 1]}) for i in range(2)]
    for requests in ([whole], halves):
        table = only(to_tables(requests, signature, name="m"))
        assert [row["features"]["x"] for row in table.to_pylist()] == expected
        assert [row["output"]["x"] for row in table.to_pylist()] == expected
        assert encode(table).size > 0


def test_redacted_fields_are_left_out():
    """Of inputs and outputs; a side whose fields are all redacted is left out, since Parquet has no empty struct."""
    rows = only(to_tables([served()], SIGNATURE, name="m", redact=("carrier", "late"))).to_pylist()
    assert rows[0]["features"] == {"distance": 0.5}
    assert "output" not in rows[0]


def test_rows_go_by_version_and_hour():
    """A canary's and a shadow's rows, and those on both sides of an hour, are tables of their own."""
    requests = [served("a", ts=at(59.99)), served("b", ts=at(60)), served("c", version=4, route="canary")]
    tables = to_tables(requests, SIGNATURE, name="flights")
    assert {
        prediction_folder("flights", *where): table["request_id"].to_pylist() for where, table in tables.items()
    } == {
        "predictions/flights/version=3/date=2026-11-25/hour=12": ["a"],
        "predictions/flights/version=3/date=2026-11-25/hour=13": ["b"],
        "predictions/flights/version=4/date=2026-11-25/hour=12": ["c"],
    }


def test_refused_and_failed_requests_have_no_rows():
    """They have no columns or no outputs."""
    assert to_tables([served(columns=None), served(outputs=None)], SIGNATURE, name="m") == {}


def test_an_output_that_another_version_has_not_is_null():
    """Its answers are recorded by the champion, under the champion's signature."""
    other = served(outputs={"other": np.zeros(1)})
    assert only(to_tables([other], SIGNATURE, name="m"))["output"].to_pylist() == [{"late": None}]
