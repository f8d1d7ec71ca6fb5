"""An endpoint behind HAProxy, on a cluster from ``raymlops up --haproxy``; many more deaths are a soak's."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import haproxy_journey
import pytest
from shell_user import User, free_ports, visiting

from raymlops.cluster.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

# HAProxy's own two ports have no option on the command line; other checkouts may test on the defaults.
RAYMLOPS = """
from functools import partial
from raymlops.cluster import local
from raymlops.cli.main import run
local.up = partial(local.up, stats_port={}, metrics_port={})
run()
"""


@pytest.fixture
def ports() -> dict[str, int]:
    return free_ports()


@pytest.fixture
def user(tmp_path: Path, mlflow_database: Path, ports: dict[str, int]) -> Iterator[User]:
    """Yield a user of a cluster that serves through HAProxy."""
    with visiting(tmp_path, mlflow_database) as someone:
        flags = [text for name, port in ports.items() for text in (f"--{name}-port", str(port))]
        up = [sys.executable, "-c", RAYMLOPS.format(free_port(), free_port()), "up", "--haproxy", "--num-cpus=2"]
        someone.env |= json.loads(someone.run(*up, *flags, "--json").stdout)["env"]
        yield someone
        someone.raymlops("down")
        assert someone.processes() == []


def test_callers_of_haproxy_notice_neither_a_flip_nor_a_death(
    user: User, ports: dict[str, int], mlflow_database: Path
) -> None:
    """The route goes over and back without a failed request, and a revoked key is refused."""
    arguments = [haproxy_journey.__file__, user.cwd, ports["http"], mlflow_database]
    seen = json.loads(user.run(sys.executable, *arguments).stdout.splitlines()[-1])
    assert (seen["statuses"], seen["versions"]) == ([200], ["1", "2"])
    assert seen["after_death"] == "1"
    assert seen["revoked_s"] < 10
    assert "haproxy" in " ".join(command for _, command in user.processes())
