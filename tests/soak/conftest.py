"""Long runs, by hand."""

import pytest
from shell_user import visiting


@pytest.fixture
def user(tmp_path):
    """Yield a user in an empty folder."""
    with visiting(tmp_path) as someone:
        yield someone
