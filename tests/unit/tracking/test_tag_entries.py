"""Lists of entries in one tag."""

from __future__ import annotations

import json

import pytest

from raymlops.tracking.tag_entries import appended, entries

KEY = "raymlops.restarts"


@pytest.mark.parametrize("tags", [{}, *({KEY: text} for text in ("", "{", "{}", "3", "[3]"))])
def test_a_tag_without_a_list_has_no_entries(tags: dict[str, str]) -> None:
    """Anyone may write tags."""
    assert entries(tags, KEY) == []


def test_the_newest_entries_that_fit_are_kept() -> None:
    """At most 20, and at most 5,000 characters: of 25 entries of 500, the last 9."""
    tags = {KEY: ""}
    for number in range(25):
        tags[KEY] = appended(tags, KEY, {"n": number})
    assert [entry["n"] for entry in entries(tags, KEY)] == list(range(5, 25))
    for number in range(25):
        entry = {"n": number, "text": "x" * (500 - len(json.dumps({"n": number, "text": ""}, separators=(",", ":"))))}
        tags[KEY] = appended(tags, KEY, entry)
    assert [entry["n"] for entry in entries(tags, KEY)] == list(range(16, 25))
