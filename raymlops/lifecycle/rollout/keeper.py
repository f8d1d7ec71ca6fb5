"""What keeps the controller running on Kubernetes: a process outside of Ray, which starts it whenever it is gone.

Owns when that is looked at. The controller itself runs on the head of the RayService's cluster, where replicas report
to it: with a head that is lost, or a cluster that is replaced, it is gone. Of several keepers one holds the lease.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from raymlops.errors import RaymlopsError, UsageError
from raymlops.lifecycle.rollout.actor import ensure_running
from raymlops.lifecycle.sources import Source, spec_of, state_of
from raymlops.state.lease import lease

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from raymlops.config.schema import ProjectSpec
    from raymlops.state.store import State

LEASE = "keeper"
PERIOD_S = 10.0

_log = logging.getLogger(__name__)


def keep_controller(source: Source, *, heartbeat: Path | None = None, stopped: threading.Event | None = None) -> None:
    """Keep the controller of a RayService's cluster running until ``stopped``; ``heartbeat`` is touched each time.

    Whatever fails is said once, and tried again.

    Raises:
        ConfigError: the configuration.
        UsageError: the environment names no RayService.
    """
    from raymlops.cluster.kubernetes.pods import RAY_SERVICE
    from raymlops.serving.control.ray_service import ray_service

    spec = spec_of(source)
    if (name := ray_service()) is None:
        raise UsageError(
            "no RayService is named, whose cluster the controller is to run on",
            hint=f"{RAY_SERVICE} names it; elsewhere `raymlops controller` starts the controller once.",
        )
    stopped = stopped or threading.Event()
    said = None
    while not stopped.is_set():
        _beat(heartbeat)
        try:
            with state_of(spec) as state, lease(state.url, LEASE, purpose=f"keeper of {name}") as renewed:
                while not stopped.is_set():
                    _beat(heartbeat)
                    renewed()
                    said = _tell(keep(spec, state, dashboard=located_dashboard), said)
                    stopped.wait(PERIOD_S)
        except RaymlopsError as error:
            said = _tell(error.message, said)
            stopped.wait(PERIOD_S)


def keep(spec: ProjectSpec, state: State, *, dashboard: Callable[[], str]) -> str | None:
    """Start the controller unless it runs, and return why that fails; None where it runs."""
    try:
        url = dashboard()
    except RaymlopsError as error:
        return error.message
    cluster = spec.cluster.model_copy(update={"dashboard": url})
    there = spec.model_copy(update={"cluster": cluster})
    return ensure_running(there, state, dashboard_url=url, must_answer=False)


def located_dashboard() -> str:
    """Return the dashboard of the RayService's cluster; raises as ``RayServiceApi.located``."""
    from raymlops.serving.control.ray_service import RayServiceApi, ray_service

    return RayServiceApi(ray_service() or "").located()


def _tell(problem: str | None, said: str | None) -> str | None:
    """Log what is new."""
    if problem is not None and problem != said:
        _log.warning("retrying: %s", problem)
    return problem


def _beat(heartbeat: Path | None) -> None:
    if heartbeat is not None:
        heartbeat.touch()
