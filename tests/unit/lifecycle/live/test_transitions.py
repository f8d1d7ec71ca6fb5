"""What verbs make of a model whose versions are on their way. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from raymlops.errors import RefusedError
from raymlops.lifecycle.live.change import Changed, record_of
from raymlops.lifecycle.live.transitions import ROUTE, Request, bring
from raymlops.records import BundleRef
from raymlops.serving.control.wait import Applied
from raymlops.state.store import Deployment, Model

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def version(number, role="warm"):
    return Deployment("m", number, BundleRef("/bundles", "d" * 64), f"run{number}", role)


def brought(model, number, *, goal=ROUTE, action="deploy", up=False):
    return bring(model, version(number), goal=goal, request=Request(action, "a test", "me", NOW, 60.0), up=up).model


def test_what_a_version_has_already_is_not_given_to_it_again_later():
    """It was deployed, came up, and was promoted before anybody gave it the route: a rollback must find the promotion.

    Its transition was left, and a rollback took that back instead: the version stayed live.
    """
    coming = brought(Model("m", (version(1, "champion"),)), 2)
    assert [one.version for one in coming.coming] == [2]
    live = brought(coming, 2, action="promote", up=True)
    assert [(item.version, item.role) for item in live.deployments] == [(1, "warm"), (2, "champion")]
    assert live.coming == ()


def test_a_version_that_is_taken_down_just_after_it_came_up_is_said():
    """Between the two another verb removed it: who had waited for it got an assertion."""
    model = Model("m", (version(1, "champion"),))
    with pytest.raises(RefusedError, match="version 2 of m came up, and was then taken down"):
        record_of(Changed(model, model, Applied({}), changed=True), 2)
