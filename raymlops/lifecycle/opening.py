"""The desired state and Serve's API, opened for a verb and closed after it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.config.schema import ProjectSpec
    from raymlops.serving.api import ServeApi
    from raymlops.state.store import State


@contextmanager
def state_of(spec: ProjectSpec) -> Iterator[State]:
    """Open the desired state."""
    from raymlops.state.store import State, state_url

    with State.open(state_url(spec)) as state:
        yield state


@contextmanager
def serve_of(spec: ProjectSpec) -> Iterator[ServeApi]:
    """Open Serve's API of the running cluster."""
    from raymlops.cluster.dashboard import dashboard
    from raymlops.serving.api import ServeApi

    with dashboard(spec) as found:
        yield ServeApi(found.url, found.token())


@contextmanager
def opened(spec: ProjectSpec) -> Iterator[tuple[State, ServeApi]]:
    """Open the desired state and Serve's API of the running cluster."""
    with serve_of(spec) as api, state_of(spec) as state:
        yield state, api
