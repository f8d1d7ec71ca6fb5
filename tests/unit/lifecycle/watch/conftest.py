"""Models that are watched: trained on 80 days in order, live as version 3 of flights."""

from datetime import UTC, datetime

import pytest
from served_days import bundle_of, deploy, references

from raymlops.config.load import load_data
from raymlops.lifecycle.sources import state_of


@pytest.fixture(scope="session")
def trained():
    return references()


@pytest.fixture(scope="session")
def trained_until_today():
    return references(today=datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0))


@pytest.fixture
def live(state, tmp_path, trained):
    """Return the state, in which version 3 of flights is live."""
    deploy(state, bundle_of(tmp_path, trained))
    return state


@pytest.fixture
def spec(tmp_path, monkeypatch, trained_until_today, copied_state):
    """Return a project whose champion is live by a state of its own."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path))
    spec = load_data({"project": {"name": "flights"}, "recipe": {"import": "any:Recipe"}}).spec
    copied_state(tmp_path)
    with state_of(spec) as state:
        deploy(state, bundle_of(tmp_path, trained_until_today))
    return spec
