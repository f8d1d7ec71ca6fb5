from __future__ import annotations

import json

import numpy as np
import pytest
from protocol_fakes import RESPONDER, ROWS, SIGNATURE, answer, parse, predict, refused

from raymlops.serving.protocols.native import PROTOCOL


def test_rows_become_columns_and_outputs_rows():
    """Null where something is missing, an integer where the column has integers."""
    encoded = answer(PROTOCOL, json.dumps({"rows": ROWS}).encode())
    data = json.loads(encoded.body)
    assert (data["model"], data["model_version"], data["request_id"]) == ("wide", "7", "request-1")
    assert data["outputs"][1] == {
        "y": pytest.approx(1.1 / 3 - 3 + 1 + 0.25 + 1e-3 - 1 + 4),  # weight -3, image 0.251, tokens 1 + 1 + 2
        "count": 2**53 + 1,
        "maybe": 2,
        "text": "JFK: \u00e9",
        "both": pytest.approx([data["outputs"][1]["y"], data["outputs"][1]["y"] / 7]),
        "sure": True,
        "open": True,
    }
    assert '"maybe":2,' in encoded.body.decode()
    assert data["outputs"][2]["maybe"] is None
    assert [row["open"] for row in data["outputs"]] == [False, True, True, None]
    assert b'"open":false' in encoded.body


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "empty_body"),
        (b"{", 400, "not_json"),
        (b"[]", 422, "invalid_rows"),
        (b"null", 422, "invalid_rows"),
        (b"{}", 422, "invalid_rows"),
        (b'{"rows": []}', 422, "invalid_rows"),
        (b'{"rows": {"x": 1}}', 422, "invalid_rows"),
        (b'{"rows": [[1]]}', 422, "invalid_rows"),
        (b'{"rows": [{"x": 1, "x": 2}]}', 400, "duplicate_key"),
        (b'{"rows": [], "threshold": 1}', 422, "invalid_rows"),
        (b'{"rows": [' + b"{}," * 100 + b"{}]}", 413, "too_many_rows"),
    ],
)
def test_a_bad_body_is_refused(body, status, code):
    """With a status for what it is."""
    found = refused(PROTOCOL, body)
    assert (found.status, found.code) == (status, code)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("x", "1", "expected a finite number, got the string '1'"),
        ("x", [False], "expected a finite number, got an array"),
        ("x", True, "expected a finite number, got true"),
        ("x", float("nan"), "expected a finite number, got nan"),
        ("x", None, "must not be null; expected a finite number"),
        ("n", 1.5, "expected an integer, got 1.5"),
        ("n", 2**63, "expected an integer, got 9223372036854775808"),
        ("b", 1, "expected true or false, got 1"),
        ("s", "LGA", "unknown category 'LGA'; known: EWR, JFK"),
        ("image", [[False, 0], [0, 0]], "expected an array of shape (2, 2) of float, got an element false"),
        ("image", [[0, 0]], "expected an array of shape (2, 2) of float, got a dimension of length 1"),
        ("tokens", [[1]], "expected an array of shape (any) of int, got an element an array"),
    ],
)
def test_a_bad_value_is_named(field, value, message):
    """By row, field and what was expected."""
    found = refused(PROTOCOL, json.dumps({"rows": [ROWS[0], {**ROWS[1], field: value}]}).encode())
    assert [(p.row, p.field, p.message) for p in found.problems] == [(1, field, message)]


def test_long_texts_are_not_sent_back():
    """A field name or a category of megabytes is cut in the answer."""
    row = {**ROWS[0], "s": "J" * 100_000}
    assert len(refused(PROTOCOL, json.dumps({"rows": [row]}).encode()).message) < 200
    named = refused(PROTOCOL, json.dumps({"rows": [{**ROWS[0], "f" * 100_000: 1}]}).encode())
    assert len(named.problems[0].field) == 80


def test_missing_outputs_are_null():
    """NaN has no JSON."""
    asked = parse(PROTOCOL, json.dumps({"rows": ROWS[:1]}).encode())
    outputs = {**predict(asked.columns), "y": np.array([np.nan])}
    data = json.loads(PROTOCOL.encode(outputs, asked, RESPONDER, signature=SIGNATURE).body)
    assert data["outputs"][0]["y"] is None
