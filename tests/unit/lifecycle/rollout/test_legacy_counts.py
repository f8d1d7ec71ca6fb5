"""Reports of replicas that know the name of the one controller of before. The actor itself is tested on a cluster."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from raymlops.errors import ClusterError
from raymlops.lifecycle.rollout.legacy_counts import Relay, is_upgraded
from raymlops.records import BundleRef
from raymlops.state.store import Deployment, State


def test_a_report_reaches_the_controller_of_the_state():
    """As it is; the controller is looked up once."""
    asked, taken = [], []

    def find(state_id):
        asked.append(state_id)
        return lambda *report: taken.append(report)

    relay = Relay("id", find)
    relay.report("m", "a", 1, {"e": {}})
    relay.report("m", "a", 2, {})
    assert (asked, taken) == (["id"], [("m", "a", 1, {"e": {}}), ("m", "a", 2, {})])


def test_the_replica_learns_that_a_report_is_lost_and_the_next_one_arrives():
    """No controller yet; then one that has died; then its successor."""
    taken = []

    def dead(*_report):
        raise OSError("the actor died")

    found = [None, dead, lambda *report: taken.append(report)]
    relay = Relay("id", lambda _id: found.pop(0))
    with pytest.raises(ClusterError, match="no controller"):
        relay.report("m", "a", 1, {})
    with pytest.raises(OSError, match="died"):
        relay.report("m", "a", 2, {})
    relay.report("m", "a", 3, {})
    assert taken == [("m", "a", 3, {})]


def test_what_was_deployed_before_the_id_is_known(tmp_path):
    """A database of today has none of it, one that was migrated has, until that version is gone."""

    def put(state, version):
        item = Deployment("m", version, BundleRef("/bundles", "d" * 64), "run", "champion", {})
        state.put_deployments({"m": [item]}, action="deploy", why="a test")

    with State.open(f"sqlite:///{tmp_path}/state.db") as state:
        assert not is_upgraded(state)
        put(state, 1)
        assert not is_upgraded(state)
        with state.writing() as connection:
            connection.execute(sa.text("UPDATE deployments SET created_at = '2020-01-01 00:00:00.000000'"))
        put(state, 1)
        assert is_upgraded(state)
        put(state, 2)
        assert not is_upgraded(state)
