"""Which columns of a live version were served otherwise than trained from the beginning.

Owns where that is read: the verdict that was kept, whose incidents name all of them, whatever became of them; or else
the one that is found now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.lifecycle.watch.window_drift import from_stored
from raymlops.state.watch.incidents import incidents_of
from raymlops.state.watch.windows import newest_window

if TYPE_CHECKING:
    from raymlops.lifecycle.watch.normal import Normal
    from raymlops.lifecycle.watch.window_drift import WindowDrift
    from raymlops.state.store import State


def skew_of(state: State, name: str, side: Normal, last: int) -> tuple[WindowDrift | None, frozenset[str], bool]:
    """Return the verdict on one side's skew by the window at ``last``, its columns, and whether it was kept.

    It is None for a version that has not answered enough; where it is no alarm there are no columns.

    Raises:
        StorageError, UnreachableError: the log or the state cannot be read.
    """
    kept = newest_window(state, name, side=side.side, version=side.version, kind="skew")
    found = side.skew(last) if kept is None else from_stored(kept)
    columns: set[str] = set()
    if found is not None and found.verdict is not None and found.outcome == "alarm":
        ours = (side.side, "skew", side.version)
        columns = {one.column for one in incidents_of(state, name) if (one.side, one.kind, one.version) == ours}
        columns |= {*found.verdict.flagged}  # of a verdict that was kept, the first ones
    return found, frozenset(columns), kept is not None
