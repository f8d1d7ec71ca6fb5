"""What should be live, on a cluster that has just started."""

from __future__ import annotations

import pytest
from fake_dashboard import fake_dashboard
from stored import put

from raymlops.config.schema import ProjectSpec
from raymlops.errors import ClusterError
from raymlops.lifecycle.restore import resume
from raymlops.records import BundleRef
from raymlops.state.database import state_url
from raymlops.state.identity import settle_on
from raymlops.state.store import Deployment, State


@pytest.fixture
def cluster():
    with fake_dashboard() as running:
        yield running


def spec(tmp_path, cluster):
    places = {"storage": {"path": str(tmp_path)}, "cluster": {"dashboard": cluster.url}}
    return ProjectSpec.model_validate({"project": {"name": "m"}, "recipe": {"import": "tiny:Tiny"}, **places})


def test_where_nothing_should_be_live_nothing_is_started(tmp_path, cluster):
    """And no database is made: a launcher asks this of every cluster."""
    where = spec(tmp_path, cluster)
    assert resume(where) is None
    assert list(tmp_path.iterdir()) == []
    State.open(state_url(where)).close()
    assert resume(where) is None


def test_what_was_live_before_the_restart_moves_to_this_cluster(tmp_path, cluster):
    """A restart gives a cluster another id; then comes the controller, which no job of a fake can start."""
    where = spec(tmp_path, cluster)
    with State.open(state_url(where)) as state:
        put(state, "m", [Deployment("m", 1, BundleRef("/b", "d" * 64), "run1", "champion", {})])
        with state.writing() as connection:
            settle_on(connection, "the cluster before", why="a test")
    with pytest.raises(ClusterError, match="the controller could not be started"):
        resume(where)
    with State.open(state_url(where)) as state:
        assert state.owner().cluster == cluster.serve.cluster
    assert cluster.serve.sent == []  # nothing waits for the models: that is the controller's
