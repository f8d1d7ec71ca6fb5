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
    from collections.abc import Collection

    from raymlops.serving.awaiting import Api
    from raymlops.state.store import State

LOCK_WAIT_S = 60.0


def take_over(state: State, cluster: Api, names: Collection[str]) -> tuple[str, ...]:
    """Take over these models from other states on this Serve, and return in words what was taken.

    With a state goes its index, once none of its models is left. Where Serve runs what a newer copy of this database
    desired, this one counts from now on.

    Raises:
        RefusedError: another change of what is live goes on for too long.
        ClusterError: Serve does not answer.
    """
    said: list[str] = []
    with state.exclusive("takeover", wait_s=LOCK_WAIT_S):
        desired = state.desired()
        division = divide(cluster.get(), desired, outdated=True)
        revisions = {mark_of(config).revision for config in division.ours.values()}
        for revision in sorted(found for found in revisions if found is not None):
            if not desired.owner.history.wrote(revision):
                why = f"this database counts, although Serve runs the change {revision} of a newer copy"
                state.record(action=TAKEOVER, subject=SELF, after={"revision": [*revision]}, why=why)
                said.append(why)
        holders = division.holders()
        for name, mark in sorted(holders.items()):
            if name in names:
                why = f"{name} is taken over from {mark}"
                state.record(action=TAKEOVER, subject=name, after={"owner": mark.id}, why=why)
                said.append(why)
        taken = {mark.id for name, mark in holders.items() if name in names}
        left = {mark.id for name, mark in holders.items() if name not in names}
        for owner in sorted(taken - left):
            state.record(action=TAKEOVER, subject=INDEX_APP, after={"owner": owner}, why="with the last of its models")
    return tuple(said)
