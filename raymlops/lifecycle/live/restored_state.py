"""Let a state database that was restored from a backup count, because the newer one is lost.

Owns its audit event, which is written like every other, so that a kill in between loses nothing; the next change brings
Serve to this state. Models of another state are never taken over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.serving.control.ownership import divide, mark_of
from raymlops.state.identity import SELF, TAKEOVER

if TYPE_CHECKING:
    from raymlops.serving.control.wait import Api
    from raymlops.state.store import State

LOCK_WAIT_S = 60.0


def make_count(state: State, cluster: Api) -> tuple[str, ...]:
    """Let this database count although Serve runs changes of a newer copy of it, and return those as text.

    Raises:
        RefusedError: another change of what is live takes too long.
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
