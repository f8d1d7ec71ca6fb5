"""Steps towards the desired state, against a real state database and Serve's API in memory."""

from __future__ import annotations

import pytest
from fake_serve import FakeServe
from states import SERVE, deploy, opened

from raymlops.errors import DeployError

MENDED = SERVE.model_copy(update={"max_rows": 5})


class Mending(FakeServe):
    """Serve on which new settings make an unhealthy version healthy."""

    def put(self, config):
        super().put(config)
        self.unhealthy = set()


@pytest.fixture
def state(tmp_path):
    with opened(tmp_path, "state") as state:
        yield state


def test_new_settings_can_mend_a_champion_that_is_unhealthy(state):
    """What it was before they were sent says nothing of them."""
    serve = Mending(dashboard_url="http://dashboard:8265")
    deploy(state, serve)
    serve.unhealthy = {"m--v1"}
    assert deploy(state, serve, section=MENDED).changed
    assert [item.serve["max_rows"] for item in state.deployments()] == [5]


def test_a_warm_version_that_is_unhealthy_gets_no_route(state):
    """Nothing new would be sent to it: it fails at once."""
    serve = FakeServe(dashboard_url="http://dashboard:8265")
    for version in (1, 2, 1):
        deploy(state, serve, version=version)
    serve.unhealthy, sent = {"m--v2"}, len(serve.sent)
    with pytest.raises(DeployError, match="m--v2 is UNHEALTHY"):
        deploy(state, serve, version=2)
    assert len(serve.sent) == sent
    assert {item.version: item.role for item in state.deployments()} == {1: "champion", 2: "warm"}
