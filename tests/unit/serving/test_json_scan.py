"""What is counted of a JSON body while it arrives: values and depth outside texts, however it is cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymlops.serving.json_scan import MAX_DEPTH, JsonScan, most_values
from raymlops.serving.refusal import Refusal

texts = st.text(st.sampled_from('ab,"\\{}[] \n\u00e9'), max_size=8)
values = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=25,
)


def commas(value) -> int:
    """Return the commas outside texts, of compact JSON."""
    if isinstance(value, dict):
        return max(len(value) - 1, 0) + sum(map(commas, value.values()))
    return max(len(value) - 1, 0) + sum(map(commas, value)) if isinstance(value, list) else 0


def scanned(body: bytes, size: int, most: int) -> str:
    """Return the code of the refusal of a body that comes in chunks of a size; empty for none."""
    scan = JsonScan(most)
    try:
        for start in range(0, len(body), size):
            scan.add(body[start : start + size])
    except Refusal as refusal:
        return refusal.code
    assert not scan.within_text
    return ""


@given(values, st.integers(1, 9), st.booleans())
def test_values_are_counted_wherever_a_body_is_cut(value, size, ascii_alone):
    """With as many commas outside texts as allowed it is accepted, with one more it is refused."""
    body = json.dumps(value, ensure_ascii=ascii_alone).encode()
    count = commas(value)
    assert scanned(body, size, count) == ""
    if count:
        assert scanned(body, size, count - 1) == "too_many_rows"


@given(values, st.integers(1, 9))
def test_a_body_that_does_not_look_large_is_not(value, size):
    """Of values, the quick look counts what texts hold as well, so that it never sees fewer."""
    body, scan = json.dumps(value).encode(), JsonScan(commas(value) - 1)
    looks = [scan.looks_large(body[start : start + size]) for start in range(0, len(body), size)]
    assert any(looks) or commas(value) == 0


@pytest.mark.parametrize(("depth", "code"), [(MAX_DEPTH, ""), (MAX_DEPTH + 1, "too_deep")])
def test_depth_is_bounded_as_the_parsers(depth, code):
    """Of lists and objects, also where all of it comes at once; brackets in a text are no depth."""
    for body in (b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth):
        for size in (7, 100_000):
            assert scanned(body, size, 0) == code
    assert scanned(b'["' + b"[{" * 9000 + b'"]', 4096, 0) == ""


def test_a_row_has_two_more_values_than_columns_and_ten_thousand_are_around_them():
    """8 columns, 5,000 rows: 10 x 5,000 + 10,000. Where rows have no bound of their own, a body has half a million."""
    assert most_values(8, max_rows=5000) == 60_000
    assert most_values(None, max_rows=5000) == 500_000
    assert most_values(None, max_rows=1_000_000) == 3_010_000
