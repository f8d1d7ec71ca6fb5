from __future__ import annotations

import json
import math
import random
import re

import pytest

from raymlops.serving.protocols.json_body import count_keys, object_of, read_json
from raymlops.serving.refusal import Refusal


def refused(call):
    with pytest.raises(Refusal) as caught:
        call()
    return caught.value.status, caught.value.code


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "empty_body"),
        (b" \n\t", "empty_body"),
        (b"{", "not_json"),
        (b"a=1", "not_json"),
        (b"\xef\xbb\xbf{}", "not_json"),
        (b"{'a': 1}", "not_json"),
        (b'{"a": 1,}', "not_json"),
        (b'{"a": "\xff"}', "not_utf8"),
        ('{"a": 1}'.encode("utf-16"), "not_utf8"),
        (b'{"a": "\\ud800"}', "not_json"),
        (b"[" * 100_000, "too_deep"),
        (b"NaN" + b"[" * 100_000, "not_json"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not_json"),
        (b'{"a": 1, "a": 2}', "duplicate_key"),
        (b'{"a" : 1, "a"\n:2}', "duplicate_key"),
        (b'{"a": {"b": {"c": 1, "c": [":"]}}}', "duplicate_key"),
        (b'[{"a": ":x", "a": ":y"}]', "duplicate_key"),
        (b'{"a": NaN, "b": 1, "b": 2}', "duplicate_key"),
    ],
)
def test_what_is_no_json_is_refused(body, code):
    """Each reason has its code, all are 400."""
    assert refused(lambda: read_json(body)) == (400, code)


def test_a_key_given_twice_among_many_is_named():
    """Of 300,000, which are gone through once: each compared with all others would be 90 billion comparisons."""
    keys = b",".join(b'"k%d":1' % number for number in range(300_000))
    with pytest.raises(Refusal, match="the key 'k299999' is given twice in one object"):
        read_json(b'{"rows":[{%s,"k299999":2}]}' % keys)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"a": 1, "\\u0061": 2}', "a"),
        (b'{"\\"": 1, "x": "\\":{", "\\"" :2}', '"'),
        (b'[{"a": {"b": 1}, "b": {"a": "}"}}, {"c": [], "c": ":"}]', "c"),
        ('{"ü": ":", "ü": 1}'.encode(), "ü"),
    ],
)
def test_a_key_is_what_it_reads_as(body, name):
    """Escapes stand for what they mean, and braces and colons in texts for nothing."""
    with pytest.raises(Refusal, match=f"the key {re.escape(repr(name))} is given twice"):
        read_json(body)


@pytest.mark.parametrize("text", [b"\\n" * 500_000 + b'\\":', b"{" * 1000 + b":", b"\\\\"])
def test_long_texts_full_of_escapes_are_gone_through(text):
    """With a colon behind a quotation mark in one of them, which makes it look as though a key was lost."""
    body = b'{"a": "%s", "b": {"a": "\\":", "b": [{"a": 1}, {"a": 2}]}}' % text
    assert read_json(body)["b"]["b"] == [{"a": 1}, {"a": 2}]


def test_a_text_without_an_end_is_gone_through_once():
    """Four million escaped quotes, each of which could begin a text; none of the commas behind them is outside."""
    body = b'{"a": "' + b'\\"' * 4_000_000 + b"," * 100
    with pytest.raises(Refusal, match="ends within a text"):
        read_json(body, max_values=10)


@pytest.mark.parametrize("seed", range(20))
def test_commas_outside_texts_are_counted_exactly(seed):
    """Over several pieces, with commas, quotation marks and backslashes in texts, also where two pieces meet."""
    draw = random.Random(seed)
    texts = ["".join(draw.choices(',"\\a', k=draw.choice((3, 7, 65_530)))) for _ in range(12)]
    body = json.dumps(texts).encode()
    assert read_json(body, max_values=len(texts) - 1) == texts
    assert refused(lambda: read_json(body, max_values=len(texts) - 2)) == (413, "too_many_rows")


@pytest.mark.parametrize(
    "data",
    [b'{"a": "12:30:00", "b": [{"c": 1}]}', b'{"a": ":x", "b": ":"}', b'{"a": "\\":", "b": 1}', b"[]", b"null", b'":"'],
)
def test_colons_in_texts_are_no_keys(data):
    """More colons than keys lead at most to a second reading, which finds nothing wrong."""
    read_json(data)


def test_keys_deep_in_a_body_are_read_too():
    """They are not counted, which costs a second pass."""
    assert read_json(b'{"a": {"b": {"c": 1}}}') == {"a": {"b": {"c": 1}}}


@pytest.mark.parametrize(("literal", "value"), [(b"NaN", math.nan), (b"-Infinity", -math.inf), (b"1e999", math.inf)])
def test_what_json_cannot_say_comes_out_as_a_float(literal, value):
    """So that whoever checks the values can name row and field."""
    (found,) = read_json(b"[" + literal + b"]")
    assert found == value or math.isnan(found) is math.isnan(value) is True


def test_a_large_body_is_not_read_twice():
    """The second reading is for a few rows with NaN; it would hold up all other requests for as long as it takes."""
    with pytest.raises(Refusal, match="NaN and infinity are not JSON") as caught:
        read_json(b'{"rows": [%sNaN]}' % (b"1.5," * 300_000))
    assert (caught.value.status, caught.value.code) == (400, "not_json")


def test_keys_are_counted_to_the_depth_of_a_row():
    """Two outside, one within a list, one within an object."""
    data = {"a": [{"b": 1}], "c": {"d": []}}
    assert (count_keys(data), count_keys(data, deep=True)) == (4, 4)


def test_parameters_of_tensors_are_counted_before_a_body_is_scanned():
    """One key outside, two of the tensor, one of its parameters."""
    data = {"inputs": [{"name": "x", "parameters": {"binary": False}}]}
    assert (count_keys(data), count_keys(data, deep=True)) == (3, 4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], 'expected an object with the keys "a", "b"'),
        ({"a": 1, "c": 2}, 'unknown key; known: "a", "b"'),
        ({"b": 1}, "is missing"),
    ],
)
def test_an_object_has_known_keys(data, message):
    """What is unknown, missing or no object is said."""
    with pytest.raises(Refusal) as caught:
        object_of(data, known=("a", "b"), required=("a",), where="here")
    assert caught.value.status == 422
    assert f"here: {message}" in caught.value.problems[0].message
