"""Long runs, by hand."""

import pytest
from cluster_from_up import started
from local_ray import local_ray
from shell_user import visiting


@pytest.fixture
def user(tmp_path, mlflow_database):
    """Yield a user in an empty folder."""
    with visiting(tmp_path, mlflow_database) as someone:
        yield someone


@pytest.fixture(scope="module")
def ray_local(tmp_path_factory):
    """Yield the connection to a local Ray of the module's own."""
    with local_ray(tmp_path_factory.mktemp("home")) as connection:
        yield connection


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, mlflow_database):
    """Yield a cluster from ``up`` of the module's own."""
    with started(tmp_path_factory.mktemp("cluster"), mlflow_database) as found:
        yield found


@pytest.fixture
def delivered(cluster, cluster_user):
    """Return the function that makes a project with a system's pipeline, and returns its user, on the cluster."""

    def make(system):
        cluster_user.raymlops("init", "late-parcels", "--ci", system)
        cluster_user.cwd /= "late-parcels"
        config = cluster_user.cwd / "config.yaml"
        serve = f"serve:\n  port: {cluster.ports['http']}\n  cpus_per_replica: 0.1\n  ready_timeout_s: 600\n"
        config.write_text(config.read_text().replace("serve:\n", serve))
        return cluster_user

    return make
