"""``deploy --restore``: bring every model back, as after a restart of the cluster."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from raymlops.lifecycle.live.change import converged
from raymlops.lifecycle.live.reconciler import Reconciler
from raymlops.lifecycle.live.restored_state import make_count
from raymlops.lifecycle.opening import live
from raymlops.lifecycle.rollout.actor import ensure_controller
from raymlops.lifecycle.sources import Source, spec_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.state.store import Deployment

_log = logging.getLogger(__name__)


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
