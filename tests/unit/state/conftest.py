"""A state database of a test's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from raymlops.state.store import State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Return the URL of a database that does not exist yet."""
    return f"sqlite:///{tmp_path / 'state.db'}"


@pytest.fixture
def state(url: str) -> Iterator[State]:
    """Return the opened state database of ``url``."""
    with State.open(url) as opened:
        yield opened
