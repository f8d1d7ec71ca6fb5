"""Bring every model back after a restart of the cluster: ``deploy --restore`` waits for it, ``controller`` does not."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from raymlops.config.paths import sqlite_path
from raymlops.errors import ClusterError
from raymlops.lifecycle.live.change import converged
from raymlops.lifecycle.live.reconciler import Reconciler
from raymlops.lifecycle.live.restored_state import make_count
from raymlops.lifecycle.opening import live
from raymlops.lifecycle.rollout.actor import ensure_controller, start_controller
from raymlops.lifecycle.sources import Source, serve_of, spec_of, state_of
from raymlops.state.database import state_url

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.config.schema import ProjectSpec
    from raymlops.lifecycle.rollout.actor import ControllerRecord
    from raymlops.state.store import Deployment

POLL_S = 0.5

_log = logging.getLogger(__name__)


def resume(source: Source, *, wait_s: float = 0.0) -> ControllerRecord | None:
    """Start the controller, which brings Serve to the desired state, on a cluster that has just started.

    The state moves to this cluster as by ``restore``, but nothing waits for its models. The dashboard may take
    ``wait_s`` to answer. Returns None if nothing is desired, or there is no state yet.

    Raises:
        RefusedError: another cluster's controller moves this database.
        ClusterError: the cluster does not answer, or the controller cannot run there.
    """
    spec = spec_of(source)
    if not _desires_anything(spec):
        return None
    _await_dashboard(spec, wait_s)
    with live(spec, restore=True):
        pass
    return start_controller(spec)


def restore(
    source: Source, *, takeover: bool = False, on_warning: Callable[[str], None] = _log.warning
) -> list[Deployment]:
    """Bring Serve to the desired state of every model, as after a restart of the cluster; return that state.

    A running rollout resumes. With ``takeover`` this database counts although it is older than what Serve runs, for
    when the newer one is lost; and it moves here although another cluster's controller moves it.

    Raises:
        DeployError: a champion did not come up; the others are sent all the same.
        TakenError: another state has a model of such a name; the others are brought back all the same.
        RefusedError: another cluster's controller moves this database; with ``takeover`` it moves here.
        ClusterError: as ``deploy``.
    """
    spec = spec_of(source)
    with live(spec, restore=True, takeover=takeover) as (state, api):
        notes = make_count(state, api) if takeover else ()
        reconciler = Reconciler(state, api, serve=spec.serve)
        reconciler.look()

        def champions() -> list[Deployment]:
            return [item for item in state.deployments() if item.role == "champion"]

        for note in (*notes, *ensure_controller(spec, state, dashboard_url=api.dashboard_url)):
            on_warning(note)
        plan, _ = converged(reconciler, champions, wait_s=spec.serve.ready_timeout_s)
        for note in plan.notes:
            on_warning(note)
        plan.refuse_blocked({item.name for item in champions()})
        return state.deployments()


def _desires_anything(spec: ProjectSpec) -> bool:
    """Return whether any model should be live; no database is created."""
    file = sqlite_path(state_url(spec))
    if file is not None and not file.exists():
        return False
    with state_of(spec) as state:
        return bool(state.deployments())


def _await_dashboard(spec: ProjectSpec, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    with serve_of(spec) as api:
        while True:
            try:
                api.cluster_id()
            except ClusterError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)
            else:
                return
