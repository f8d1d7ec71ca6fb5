"""Room for a training's workers on the connected cluster, asked again and again while it runs.

Owns the counting. Knows nothing of trainings: it answers ``training.elastic.Room`` without importing it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.cluster import holders
from raymlops.cluster.capacity import Ask, decide, remedy, room
from raymlops.cluster.growth import autoscaler_growth
from raymlops.errors import InsufficientResourcesError

if TYPE_CHECKING:
    from collections.abc import Collection


class Places:
    """Places for equal workers."""

    def __init__(self, *, cpus_per_worker: float, gpus_per_worker: float = 0.0, purpose: str) -> None:
        self._cpus_per_worker = cpus_per_worker
        self._gpus_per_worker = gpus_per_worker
        self._purpose = purpose

    def count(self, *, without: Collection[str] = ()) -> float:
        """Return how many workers could start now, beside what runs, on other nodes than those in ``without``."""
        import ray
        from ray._private import state  # the free share of each node has no public call in 2.60

        free = state.available_resources_per_node()
        alive = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in without]
        return room(self._ask(1), [free.get(node_id, {}) for node_id in alive])

    def may_grow(self, workers: int) -> bool:
        """Return whether an autoscaler may make room for so many. Costs a task on the head."""
        total, available = holders.nodes()
        asked = self._ask(workers)
        verdict = decide(asked, total=total, available=available, growth=autoscaler_growth(asked))
        return verdict.kind == "grows"

    def error(self, workers: int, *, waited_s: float) -> InsufficientResourcesError:
        """Return the error that says what is there and who holds it, after a wait in vain."""
        total, available = holders.nodes()
        found = holders.holders()
        verdict = decide(self._ask(workers), total=total, available=available, holders=found)
        hint = (
            "lower train.num_workers or the share of each, add nodes, or raise cluster.wait_s; a run that had "
            "begun goes on with `raymlops train --resume RUN_ID`"
        )
        return InsufficientResourcesError(
            f"{verdict.message}\n  waited {waited_s:.0f} s", hint=". ".join(filter(None, (hint, remedy(found))))
        )

    def _ask(self, workers: int) -> Ask:
        return Ask(workers, self._cpus_per_worker, self._gpus_per_worker, self._purpose)
