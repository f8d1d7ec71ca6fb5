"""What is counted of a CSV body while it arrives: never fewer values than the parser makes of it."""

from __future__ import annotations

import codecs
import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymlops.serving.csv_scan import CsvScan, refuse_more
from raymlops.serving.refusal import Refusal

cells = st.text(st.sampled_from('ab," \n\r\u00e9'), max_size=6)


def scanned(body: bytes, size: int, most: int) -> bool:
    """Return whether a body that comes in chunks of a size is refused."""
    scan = CsvScan(most)
    try:
        for start in range(0, len(body), size):
            scan.add(body[start : start + size])
    except Refusal as refusal:
        return refusal.code == "too_many_rows"
    return False


@given(st.lists(st.lists(cells, min_size=2, max_size=5), min_size=1, max_size=5), st.integers(3, 9), st.booleans())
def test_values_are_counted_wherever_a_body_is_cut(rows, size, marked):
    """As a program writes them, with what is in texts: a comma between two, and two characters at the end of a line."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    body = codecs.BOM_UTF8 * marked + text.getvalue().encode()
    count = sum(len(row) - 1 + 2 for row in rows)
    assert not scanned(body, size, count)
    assert scanned(body, size, count - 1)


@given(st.text(st.sampled_from('a," \n\r'), max_size=40), st.integers(1, 9))
def test_nothing_hides_values_from_the_count(text, size):
    """However quotes are placed, it sees as many as the parser has until it fails."""
    parsed = 0
    try:
        for row in csv.reader(io.StringIO(text, newline=""), strict=True):
            parsed += len(row)
    except csv.Error:
        pass
    assert parsed < 2 or scanned(text.encode(), size, parsed - 2)


@given(st.text(st.sampled_from('a,"\n'), max_size=40))
def test_a_body_that_does_not_look_large_is_not(text):
    """The quick look counts what is in texts as well, so that it never sees fewer."""
    body = text.encode()
    for most in range(4):
        assert CsvScan(most).looks_large(body) or not scanned(body, 7, most)


def test_a_whole_body_is_counted_as_one_that_arrives():
    """Two lines of two values each, and a comma and a line end in a text."""
    body = b'a,b\n"1,\n",2\n'
    for most in (None, 4):
        refuse_more(body, most)
    with pytest.raises(Refusal) as caught:
        refuse_more(body, 3)
    assert caught.value.status == 413
