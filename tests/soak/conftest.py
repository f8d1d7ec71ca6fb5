"""Long runs, by hand."""

import pytest
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
