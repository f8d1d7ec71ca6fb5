"""The cluster's nodes as a training sees them: which are about to leave, and which have died without notice.

Owns the questions to Ray. Decides nothing.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

_ANSWER_S = 1.0


def draining() -> frozenset[str]:
    """Return the nodes that have been told to leave; none where Ray does not answer."""
    from ray._private.state import state  # Ray Train 2.60 asks here too: there is no public call

    with suppress(Exception):
        return frozenset(state.get_draining_nodes())
    return frozenset()


def dead(node_ids: Collection[str]) -> frozenset[str]:
    """Return which of these nodes are gone; none where Ray does not answer.

    Ray itself takes up to 15 s to notice, in which it would start workers there again; a node whose raylet refuses
    a connection is gone now.
    """
    import ray

    with suppress(Exception):
        known = {row["NodeID"]: row for row in ray.nodes()} if node_ids else {}
        return frozenset(node_id for node_id in node_ids if not _answers(known.get(node_id)))
    return frozenset()


def excluding(node_ids: Collection[str]) -> dict[str, str] | None:
    """Return Ray's label selector that keeps workers off these nodes; None where there are none."""
    if not node_ids:
        return None
    return {"ray.io/node-id": f"!in({','.join(sorted(node_ids))})"}


def _answers(row: dict[str, Any] | None) -> bool:
    if row is None or not row["Alive"]:
        return False
    try:
        with socket.create_connection((row["NodeManagerAddress"], row["NodeManagerPort"]), timeout=_ANSWER_S):
            return True
    except OSError:
        return False
