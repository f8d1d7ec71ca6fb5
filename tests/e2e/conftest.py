"""End-to-end tests run ``raymlops`` as a user does; those that need a cluster share one from ``raymlops up``."""

import json
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
from shell_user import ROOT, User, free_ports, visiting


def pytest_collection_modifyitems(items):
    """Run what uses the shared cluster last, so that it does not idle beside tests with a Ray of their own."""
    items.sort(key=lambda item: "cluster" in getattr(item, "fixturenames", ()))


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
def cluster(tmp_path_factory, mlflow_database):
    """Hold one cluster with gRPC; ``down`` ends every process of it."""
    with visiting(tmp_path_factory.mktemp("cluster"), mlflow_database) as owner:
        ports = free_ports()
        env = owner.up(ports, "--num-cpus", "2")
        assert urlsplit(env["MLFLOW_TRACKING_URI"]).port == ports["mlflow"]
        yield Cluster(owner, ports, env)
        assert json.loads(owner.raymlops("down", "--json").stdout)["down"]["stopped"] > 0
        assert owner.processes() == []


@pytest.fixture
def cluster_user(cluster, tmp_path):
    """Return the cluster's user in an empty folder, in a shell that exported what ``up`` prints."""
    someone = cluster.owner.moved(tmp_path)
    someone.env |= cluster.env
    return someone
