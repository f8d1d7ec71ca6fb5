"""Making a state answer for what another one deployed, because that is lost: the one way in which ownership changes.

Owns what is written of it. It is an event of the audit record like every other, so that a kill in between loses
nothing; Serve is brought to it by whatever is sent next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.serving.ownership import divide, mark_of
from raymlops.serving.render import INDEX_APP
from raymlops.state.identity import SELF, TAKEOVER

if TYPE_CHECKING:
    from raymlops.serving.awaiting import Api
    from raymlops.state.store import State

LOCK_WAIT_S = 60.0


def take_over(state: State, cluster: Api, name: str) -> tuple[str, ...]:
    """Take over a model from another state on this Serve, and return in words what was taken.

    With the last model of a state goes its index.

    Raises:
        OutdatedStateError: Serve runs what a newer copy of this database desired.
        RefusedError: another change of what is live goes on for too long.
        ClusterError: Serve does not answer.
    """
    with state.exclusive(f"takeover {name}", wait_s=LOCK_WAIT_S):
        holders = divide(cluster.get(), state.desired()).holders()
        if (mark := holders.pop(name, None)) is None:
            return ()
        why = f"{name} is taken over from {mark}"
        state.record(action=TAKEOVER, subject=name, after={"owner": mark.id}, why=why)
        if mark.id not in {other.id for other in holders.values()}:
            state.record(action=TAKEOVER, subject=INDEX_APP, after={"owner": mark.id}, why=f"{why}, its last model")
    return (why,)


def make_count(state: State, cluster: Api) -> tuple[str, ...]:
    """Make this database count where Serve runs what a newer copy of it desired, and return in words what is undone.

    Raises:
        RefusedError: another change of what is live goes on for too long.
        ClusterError: Serve does not answer.
    """
    said = []
    with state.exclusive("takeover", wait_s=LOCK_WAIT_S):
        desired = state.desired()
        division = divide(cluster.get(), desired, outdated=True)
        marks = [mark for config in division.ours.values() if (mark := mark_of(config)).id == desired.owner.id]
        revisions = {mark.revision for mark in marks}
        for revision in sorted(found for found in revisions if found is not None):
            if not desired.owner.history.wrote(revision):
                why = f"this database counts, although Serve runs the change {revision} of a newer copy"
                state.record(action=TAKEOVER, subject=SELF, after={"revision": [*revision]}, why=why)
                said.append(why)
    return tuple(said)
