"""End-to-end tests run ``raymlops`` as a user does; those that need a cluster share one from ``raymlops up``."""

import json
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from shell_user import ROOT, User, free_ports, visiting

DRIVER = """
import ray
from raymlops.cluster.connect import connect
from raymlops.cluster.driver_node import resumable
from raymlops.config.schema import ProjectSpec
spec = ProjectSpec.model_validate({"project": {"name": "x"}, "recipe": {"import": "a:B"}})
with connect(spec), resumable("resume it"):
    print("attached", flush=True)
    while True:  # a driver that touches the object store is ended by Ray as soon as its node is gone
        ray.get(ray.put(bytes(1_000_000)))
"""


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


@dataclass(frozen=True)
class Cluster:
    """A cluster from ``up``: who started it, and the port of each service."""

    owner: User
    ports: dict[str, int]
    env: dict[str, str]
    """What ``up`` prints to be exported."""

    @property
    def url(self):
        """Return the address of the endpoints."""
        return f"http://127.0.0.1:{self.ports['http']}"


@pytest.fixture(scope="session")
def cluster(request, tmp_path_factory, mlflow_database):
    """Yield the cluster that tests share; it ends with the last of them."""
    with ExitStack() as held:
        found = held.enter_context(started(tmp_path_factory.mktemp("cluster"), mlflow_database))
        request.config.stash[HELD] = held
        yield found


@contextmanager
def started(folder, mlflow_database):
    """Hold one cluster with HAProxy and gRPC; ``down`` ends every process of it, and drivers elsewhere in words."""
    with visiting(folder, mlflow_database) as owner:
        ports = free_ports()
        flags = [text for name, port in ports.items() for text in (f"--{name}-port", port)]
        env = json.loads(owner.raymlops("up", "--num-cpus", 2, *flags, "--json").stdout)["env"]
        assert urlsplit(env["MLFLOW_TRACKING_URI"]).port == ports["mlflow"]
        yield Cluster(owner, ports, env)
        with attached(owner) as driver:
            assert json.loads(owner.raymlops("down", "--json").stdout)["down"]["stopped"] > 0
            said = driver.communicate(timeout=60)[1]
        # Not Ray's own exit with 1, which says nothing: the code of a lost cluster, and how to go on.
        assert driver.returncode == 5, said
        assert "raymlops down stops the cluster" in said
        assert "resume it" in said
        assert owner.processes() == []


def attached(user):
    """Return a driver that is attached to the user's cluster, from another shell."""
    command, pipe = [sys.executable, "-c", DRIVER], subprocess.PIPE
    driver = subprocess.Popen(command, cwd=user.cwd, env=user.env, stdout=pipe, stderr=pipe, text=True)
    assert driver.stdout.readline() == "attached\n"
    return driver


@pytest.fixture
def cluster_user(cluster, tmp_path):
    """Return the cluster's user in an empty folder, in a shell that exported what ``up`` prints."""
    someone = cluster.owner.moved(tmp_path)
    someone.env |= cluster.env
    return someone
