"""A model that answers by echo, and a world in which the loop retrains it."""

import pytest
from echoed_log import bundle as echo_bundle
from loop_world import World


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return echo_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def world(tmp_path, bundle):
    made = World(tmp_path, bundle)
    yield made
    made.close()
