"""Nodes that workers are kept off."""

from __future__ import annotations

from raymlops.training.supervision.processes import excluding


def test_a_selector_names_the_nodes_that_are_left_out() -> None:
    """Ray's words for "none of these"; without any there is nothing to select."""
    assert excluding({"b" * 56, "a" * 56}) == {"ray.io/node-id": f"!in({'a' * 56},{'b' * 56})"}
    assert excluding(()) is None
