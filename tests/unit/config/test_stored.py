"""Sections as another release stored them."""

from __future__ import annotations

import pytest

from raymlops.config.serve import RolloutSection, ServeSection
from raymlops.config.stored import read_stored
from raymlops.errors import StorageError


def test_what_was_stored_comes_back():
    """Through JSON, in which tuples are lists."""
    section = ServeSection(max_rows=7, allowed_hosts=("a",), rollout=RolloutSection(steps=(5.0, 100.0)))
    assert read_stored(ServeSection, section.model_dump(mode="json")) == section


@pytest.mark.parametrize("where", [(), ("log",), ("traffic",), ("rollout",)])
def test_fields_of_another_release_are_left_out_at_every_depth(where):
    """What stands beside them counts, and what is read stays as it is."""
    data = ServeSection(max_rows=7).model_dump(mode="json")
    inner = data
    for key in where:
        inner = inner[key]
    inner["of_a_next_release"] = {"a": [1]}
    assert read_stored(ServeSection, data) == ServeSection(max_rows=7)
    assert inner["of_a_next_release"] == {"a": [1]}


@pytest.mark.parametrize(
    "stored",
    [
        {"proxy": "envoy"},
        {"timeout_s": None},
        {"log": None},
        {"log": {"retention_days": "forever", "next": 1}},
        {"rollout": {"on_no_verdict": "ask", "steps": [[10, "a"], [50, "b"]]}},
        {"traffic": {"sticky": {"cookie": "x"}, "max_shadow_requests": 0}},
        {"resources_per_replica": [1]},
        {"update": {"mode": "beside"}},
    ],
)
def test_values_of_another_release_get_the_default(stored):
    """Of another type, out of range, or a word that is not known; the others stay."""
    assert read_stored(ServeSection, {"max_rows": 7, **stored}) == ServeSection(max_rows=7)


def test_what_contradicts_itself_is_refused():
    """All of it would be guessed."""
    with pytest.raises(StorageError, match="max_replicas 2 is below min_replicas 3"):
        read_stored(ServeSection, {"min_replicas": 3, "max_replicas": "as many as fit"})
