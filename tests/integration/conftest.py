"""One local Ray for the whole session: two CPUs, a dashboard, token authentication, a home of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from raymlops.cluster.connect import Connection, connect
from raymlops.config.schema import ProjectSpec

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def ray_local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """Yield the connection: ``address``, ``dashboard_url``, ``token_path``. Leaving ends what was started here."""
    home = tmp_path_factory.mktemp("home")
    spec = ProjectSpec.model_validate(
        {
            "project": {"name": "tests"},
            "recipe": {"import": "tiny:Tiny"},
            "cluster": {"address": "local", "num_cpus": 2.0},
        }
    )
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HOME", str(home))
        environment.setenv("RAYMLOPS_HOME", str(home / "raymlops"))
        environment.delenv("RAY_ADDRESS", raising=False)
        with connect(spec, dashboard=True) as connection:
            yield connection
