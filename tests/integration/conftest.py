"""One local Ray for the whole session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from local_ray import local_ray

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.cluster.connect import Connection


@pytest.fixture(scope="session")
def ray_local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """Yield the connection: ``address``, ``dashboard_url``, ``token_path``."""
    with local_ray(tmp_path_factory.mktemp("home")) as connection:
        yield connection
