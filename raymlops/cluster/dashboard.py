"""Finding the Ray dashboard of a running cluster, whose REST API takes Serve's config.

Connects to Ray only where nothing else says the URL: a rollback must not wait for that.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raymlops.cluster import auth, upfile
from raymlops.cluster.connect import connect, find
from raymlops.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.config.schema import ProjectSpec

VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS")


@dataclass(frozen=True)
class Dashboard:
    """A dashboard's URL, and the file of the token that it requires."""

    url: str
    token_path: Path | None

    def token(self) -> str | None:
        """Read the token; None where there is no file.

        Raises:
            ClusterError: the file cannot be read.
        """
        if self.token_path is None:
            return None
        try:
            return self.token_path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ClusterError(
                f"cannot read the token file {self.token_path}: {error.strerror}", hint="raymlops doctor says more"
            ) from error


@contextmanager
def dashboard(spec: ProjectSpec) -> Iterator[Dashboard]:
    """Yield the dashboard of the cluster that ``spec`` means.

    In this order: ``cluster.dashboard``; ``RAY_API_SERVER_ADDRESS`` or ``RAY_DASHBOARD_ADDRESS``; what ``raymlops up``
    started; the one of the cluster at ``cluster.address`` or ``RAY_ADDRESS``.

    Raises:
        ClusterError: there is no running cluster: nothing that ends with this process can serve.
    """
    named = spec.cluster.dashboard or next((os.environ[name] for name in VARIABLES if os.environ.get(name)), None)
    record = upfile.read()
    if named is not None:
        ours = record is not None and record.dashboard_url.rstrip("/") == named.rstrip("/")
        yield Dashboard(named, Path(record.token_path) if record and ours else auth.current_token())
        return
    address, _ = find(spec)
    if address is None:
        raise ClusterError("there is no running cluster", hint="raymlops up starts one on this machine")
    if record is not None and record.ray_address == address:
        yield Dashboard(record.dashboard_url, Path(record.token_path))
        return
    with connect(spec) as connection:
        if connection.dashboard_url is None:
            raise ClusterError(
                f"the cluster at {address} runs without a dashboard, whose API takes deployments",
                hint="start it with --include-dashboard true, or set cluster.dashboard",
            )
        yield Dashboard(connection.dashboard_url, Path(connection.token_path) if connection.token_path else None)
