from __future__ import annotations

import pytest

from raymlops.records import BundleRef
from raymlops.state.aliases import add_pending_alias, complete_alias, pending_aliases
from raymlops.state.store import Deployment


def put(state, version, *, name="m", debt=True):
    item = Deployment(name, version, BundleRef("/bundles", "d" * 64), "run", "champion")

    def also(connection):
        if debt:
            add_pending_alias(connection, name, version)

    state.put_deployments({name: [item]}, action="deploy", why="", also=also)


def test_a_debt_is_written_with_the_change_and_ends_when_it_is_paid(state):
    """One a model: the newest version is the one to which the alias is to be set."""
    for name, version in (("m", 1), ("n", 1), ("m", 2)):
        put(state, version, name=name)
    assert pending_aliases(state) == [("m", 2), ("n", 1)]
    complete_alias(state, "m", 2)
    assert pending_aliases(state) == [("n", 1)]


def test_a_debt_is_not_written_without_the_change(state):
    """A change that is refused owes nothing."""

    def refuse(connection):
        add_pending_alias(connection, "m", 1)
        raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        state.put_deployments({"m": []}, action="deploy", why="", also=refuse)
    assert pending_aliases(state) == []


def test_an_alias_set_too_late_is_owed_to_who_is_live_by_then(state):
    """Version 2 went live while the alias was on its way to 1, and had set it already; once 1 is paid it is wrong."""
    put(state, 1)
    put(state, 2)
    complete_alias(state, "m", 2)
    complete_alias(state, "m", 1)
    assert pending_aliases(state) == [("m", 2)]


def test_a_model_that_is_not_served_owes_nothing(state):
    """It was taken down; its alias may stay."""
    put(state, 1)
    state.put_deployments({"m": []}, action="remove", why="")
    complete_alias(state, "m", 1)
    assert pending_aliases(state) == []
