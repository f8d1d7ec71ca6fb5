"""Open the state and the cluster on which it is live, for the verbs that change that."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from raymlops.lifecycle.live.restored_state import settle
from raymlops.lifecycle.rollout.actor import LEASE
from raymlops.lifecycle.sources import opened
from raymlops.state.lease import holder_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.config.schema import ProjectSpec
    from raymlops.serving.control.rest_api import ServeApi
    from raymlops.state.store import State


@contextmanager
def live(spec: ProjectSpec, *, restore: bool = False, takeover: bool = False) -> Iterator[tuple[State, ServeApi]]:
    """Open the state and Serve's API of the cluster on which the state is live."""
    with opened(spec) as (state, api):
        settle(state, api, holder=lambda: holder_of(state.url, LEASE), restore=restore, takeover=takeover)
        yield state, api
