"""Counts of replicas that an earlier raymlops started: they report to the one controller a cluster that it knew of.

Owns the actor that has that controller's name and hands each report on to the state's own controller. So a rollout has
its counts although no replica restarts with an upgrade. One is enough: the earlier raymlops had one state a cluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from raymlops.errors import ClusterError
from raymlops.serving.telemetry.rollout_counts import CONTROLLER, NAMESPACE, find_controller
from raymlops.state.schema import deployments, identity

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.serving.telemetry.rollout_counts import Send
    from raymlops.state.store import State


class Relay:
    """The actor. It is called one report at a time."""

    def __init__(self, state_id: str, find: Callable[[str], Send | None] = find_controller) -> None:
        self._id = state_id
        self._find = find
        self._send: Send | None = None

    def report(self, name: str, replica: str, sequence: int, report: dict[str, Any]) -> None:
        """Hand on the counts of one replica.

        Raises:
            ClusterError: no controller is there. The replica learns it, and reports all of its counts again.
        """
        self._send = self._send or self._find(self._id)
        if self._send is None:
            raise ClusterError("no controller of this state is on the cluster")
        try:
            self._send(name, replica, sequence, report)
        except Exception:
            self._send = None
            raise

    def status(self) -> dict[str, Any]:
        """Return for whom it hands on. It is no controller: it names no database, and is never ended for one."""
        return {"relay": self._id}


def is_upgraded(state: State) -> bool:
    """Return whether anything should be live that was deployed before the database had an id.

    Its replicas may run the code of then, and report to the name of then.
    """
    with state.reading() as connection:
        oldest = connection.scalar(sa.select(sa.func.min(deployments.c.created_at)))
        made_at = connection.scalar(sa.select(identity.c.made_at))
    return oldest is not None and made_at is not None and oldest < made_at


def ensure_relay(state_id: str) -> None:
    """Start the actor where nothing has its name. It ends with its cluster."""
    import ray

    options: dict[str, Any] = {
        "name": CONTROLLER,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "num_cpus": 0,
    }
    ray.remote(Relay).options(**options).remote(state_id)
