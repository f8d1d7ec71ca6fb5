"""End-to-end tests run ``raymlops`` as a user does."""

import pytest
from shell_user import ROOT, visiting


@pytest.fixture
def user(tmp_path):
    """Yield a user in an empty folder."""
    with visiting(tmp_path) as someone:
        yield someone


@pytest.fixture
def repository():
    """Return the root of the checkout."""
    return ROOT
