"""Which columns of a live version were served otherwise than trained from the beginning.

Owns where that is read: the verdict that was kept, whose incident has the names of all of them, whatever became of it;
or else the one that is found now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.lifecycle.watch.window_drift import from_stored
from raymlops.state.watch.incidents import incidents_of
from raymlops.state.watch.windows import newest_window

if TYPE_CHECKING:
    from collections.abc import Collection

    from raymlops.lifecycle.watch.normal import Normal
    from raymlops.lifecycle.watch.window_drift import WindowDrift
    from raymlops.state.store import State


def skew_of(
    state: State, name: str, side: Normal, last: int, *, acknowledged: Collection[str] = ()
) -> tuple[WindowDrift | None, frozenset[str], bool]:
    """Return the verdict on one side's skew by the window at ``last``, its columns, and whether it was kept.

    It is None for a version that has not answered enough; where it is no alarm there are no columns. ``acknowledged``
    are ids of incidents.

    Raises:
        StorageError, UnreachableError: the log or the state cannot be read.
    """
    kept = newest_window(state, name, side=side.side, version=side.version, kind="skew")
    found = side.skew(last) if kept is None else from_stored(kept, acknowledged=acknowledged)
    columns: tuple[str, ...] = ()
    if found is not None and found.verdict is not None and found.outcome == "alarm":
        columns = found.verdict.flagged  # of a verdict that was kept, the first ones
        if found.incident is not None:
            columns = next((one.columns for one in incidents_of(state, name) if one.id == found.incident), columns)
    return found, frozenset(columns), kept is not None
