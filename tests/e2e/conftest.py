"""End-to-end tests run ``raymlops`` as a user does; those that need a cluster share one from ``raymlops up``."""

from contextlib import ExitStack
from pathlib import Path

import pytest
from cluster_from_up import started
from shell_user import ROOT, visiting

ON_THE_CLUSTER = {"test_controller_job.py", "test_haproxy.py", "test_loop.py", "test_readme.py"}
"""What uses the shared cluster and is no soak: what is missing here starts a second one."""
HERE = Path(__file__).parent
HELD = pytest.StashKey[ExitStack]()


def shares_cluster(item):
    """Return whether a test, None after the last one, uses the shared cluster."""
    return item is not None and item.path.parent == HERE and "cluster" in getattr(item, "fixturenames", ())


def pytest_collection_modifyitems(items):
    """Begin with what uses the shared cluster: it takes longest."""
    items.sort(key=shares_cluster, reverse=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Leave each file to one worker, and all files that use the shared cluster to the same one.

    Marks of groups would say so, but pytest 9.2 does not see them (xdist 3.8 adds them to an attribute that it had).
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            path = super()._split_scope(nodeid)
            return "cluster" if Path(path).name in ON_THE_CLUSTER else path

    return Scheduling(config, log)


@pytest.hookimpl(trylast=True)  # after the fixtures of the test
def pytest_runtest_teardown(item, nextitem):
    """End the shared cluster after its last test, so that it does not idle beside tests with a Ray of their own."""
    if HELD in item.config.stash and not shares_cluster(nextitem):
        item.config.stash[HELD].close()


@pytest.fixture
def user(tmp_path, mlflow_database):
    """Yield a user in an empty folder."""
    with visiting(tmp_path, mlflow_database) as someone:
        yield someone


@pytest.fixture
def repository():
    """Return the root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def cluster(request, tmp_path_factory, mlflow_database):
    """Yield the cluster that tests share; it ends with the last of them."""
    with ExitStack() as held:
        found = held.enter_context(started(tmp_path_factory.mktemp("cluster"), mlflow_database))
        request.config.stash[HELD] = held
        yield found
