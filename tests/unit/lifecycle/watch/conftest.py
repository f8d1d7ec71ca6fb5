"""Models that are watched: trained on 80 days in order, live as version 3 of flights."""

import pytest
from judged_days import judged_days, today
from served_days import bundle_of, deploy, references

from raymlops.config.load import load_data
from raymlops.lifecycle.sources import state_of


@pytest.fixture(scope="session")
def trained():
    return references()


@pytest.fixture(scope="session")
def trained_until_today():
    return references(today=today())


@pytest.fixture
def live(state, tmp_path, trained):
    """Return the state, in which version 3 of flights is live."""
    deploy(state, bundle_of(tmp_path, trained))
    return state


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Return the project flights, which has a state of its own."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path))
    return load_data({"project": {"name": "flights"}, "recipe": {"import": "any:Recipe"}}).spec


@pytest.fixture
def spec(project, tmp_path, trained_until_today):
    """Return the project, whose champion is live."""
    with state_of(project) as state:
        deploy(state, bundle_of(tmp_path, trained_until_today))
    return project


@pytest.fixture
def watch(state, tmp_path):
    """Return what serves days up to one from now, counts and judges them."""
    return judged_days(state, tmp_path)
