"""Which cluster a state database is live on, and whether a database that was restored from a backup counts.

Owns both decisions and their audit events, which are written like every other, so that a kill in between loses nothing.
Models of another state are never taken over.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from raymlops.errors import ElsewhereError
from raymlops.lifecycle.live.withdrawals import superseded
from raymlops.serving.control.ownership import divide, mark_of
from raymlops.state.identity import SELF, SHORT, TAKEOVER, History, owner_in, settle_on
from raymlops.state.store import deployments_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.lifecycle.live.reconciler import Cluster
    from raymlops.serving.control.plan import Api
    from raymlops.state.store import State


def settle(
    state: State,
    cluster: Cluster,
    *,
    holder: Callable[[], str | None],
    restore: bool = False,
    takeover: bool = False,
) -> None:
    """Make sure that this database is live on this cluster, before anything is changed.

    A database that has nothing live moves to the cluster that asks. Otherwise it moves by ``restore`` alone, as after a
    restart of the cluster, and while another cluster's controller moves it (``holder``) only by ``takeover``.

    Raises:
        ElsewhereError: it is live on another cluster.
        ClusterError: the cluster does not answer.
    """
    here, there = cluster.cluster_id(), state.owner().cluster
    if here == there:
        return
    taken = bool(state.deployments())
    if there and taken:
        which = f"what this state database desires is live on another cluster, {there[:SHORT]}, not on this one"
        if not restore:
            raise ElsewhereError(
                f"{which}, {here[:SHORT]}",
                hint="After a restart of the cluster: raymlops deploy --restore brings it up here. Another cluster "
                "needs a database of its own: storage.state.",
            )
        if (found := holder()) is not None and not takeover:
            raise ElsewhereError(
                f"{which}: its controller runs: {found}",
                hint="Give this cluster a database of its own (storage.state), or move everything here: "
                "raymlops deploy --restore --takeover. The applications on the other one are left as they are.",
            )
    with state.writing() as connection:
        if (owner_in(connection, History()).cluster, bool(deployments_in(connection))) == (there, taken):
            settle_on(connection, here, why="restored" if there else "first used here")
            return
    settle(state, cluster, holder=holder, restore=restore, takeover=takeover)  # another process was faster


def make_count(state: State, cluster: Api) -> tuple[str, ...]:
    """Let this database count although Serve runs changes of a newer copy of it, and return those as text.

    What was on its way in it is superseded: that has ended long since, in the newer copy.

    Raises:
        ClusterError: Serve does not answer.
    """
    said = []
    desired = state.desired()
    division = divide(cluster.get(), desired, outdated=True)
    marks = [mark for config in division.ours.values() if (mark := mark_of(config)).id == desired.owner.id]
    revisions = {mark.revision for mark in marks if mark.revision is not None}
    newer = sorted(found for found in revisions if not desired.owner.history.wrote(found))
    for name in sorted({one.name for one in desired.coming}) if newer else ():
        state.change(name, partial(superseded, action=TAKEOVER, why="the database was restored from a backup"))
    for revision in newer:
        why = f"this database counts, although Serve runs the change {revision} of a newer copy"
        state.record(action=TAKEOVER, subject=SELF, after={"revision": [*revision]}, why=why)
        said.append(why)
    return tuple(said)
