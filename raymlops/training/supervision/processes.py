"""The processes of a worker group: an actor for each rank and, where there is none yet, their placement group.

Owns their start and their end. They import what every rank needs as soon as they run, while nobody waits for them.
Knows nothing of attempts.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

from raymlops.cluster.import_paths import own_paths, take_over
from raymlops.signals import undisturbed
from raymlops.training.supervision.scaling_policy import choose

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from raymlops.config.train import TrainSection
    from raymlops.training.supervision.scaling_policy import Room

_LOOK_S = 0.25
_WAIT_EVERY_S = 1.0
_WAIT_LOOKS = 2
"""How often in a row something is seen to wait before processes give up their places."""
_DRIVERS_OWN = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING",
}
"""Variables of Ray Train that matter to its controller alone."""
_LIBRARIES = (
    "torch",
    "ray.train.torch",
    "torch._dynamo",  # DDP and every optimizer import it (torch 2.13)
    "raymlops.training.supervision.worker",
    "raymlops.training.loop.loop",
    "raymlops.data.prepare",
    "raymlops.training.preflight",
)
_BEFORE_GPUS = ("torch",)
"""What asks CUDA for nothing: the first question settles which GPUs a process sees, and Ray Train shares those of a
node among its ranks later."""


class WorkerProcesses:
    """The processes of ``workers`` workers, which start at once. A context manager: leaving it ends them."""

    def __init__(
        self, section: TrainSection, *, workers: int, without: Collection[str] = (), group: Any = None
    ) -> None:
        """Request the processes, ``without`` these nodes, and return before they run.

        Their places are those of ``group`` after its first one, which stay; by default a placement group of their own.
        """
        import ray
        from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker
        from ray.train.v2._internal.util import bundle_to_remote_args
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self.workers = workers
        self.placed = False
        """Whether there is a place for each of them."""
        resources = resources_of(section)
        selector = excluding(without)
        # A runtime environment keeps an actor from the processes that Ray holds ready, and imports Ray twice.
        options: dict[str, Any] = {"runtime_env": {"env_vars": env}} if (env := _variables()) else {}
        actor = ray.remote(**options, **bundle_to_remote_args(resources))(RayTrainWorker)
        self._killed = False
        self._owns_group = group is None
        first = 0 if self._owns_group else 1
        with undisturbed():
            self.group = group or placement_group(
                [resources] * workers, bundle_label_selector=None if selector is None else [selector] * workers
            )
            self.actors = [
                actor.options(
                    scheduling_strategy=PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=index)
                ).remote()
                for index in range(first, first + workers)
            ]
        libraries = _BEFORE_GPUS if section.gpus_per_worker else _LIBRARIES
        for each in self.actors:
            each.execute.remote(import_libraries, libraries, own_paths())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def wait_for_places(self, timeout_s: float) -> bool:
        """Wait for a place for each; return whether they are there. False at once where the processes were killed."""
        deadline = time.monotonic() + timeout_s
        while not (self.placed or self._killed) and time.monotonic() < deadline:
            self.placed = self.group.wait(_LOOK_S)
        return self.placed

    def kill(self) -> None:
        """Kill the processes, stopped ones too."""
        import ray

        self._killed = True
        for each in self.actors:
            with suppress(Exception):  # it may have ended, and the cluster with it
                ray.kill(each)

    def end(self) -> None:
        """Kill the processes and give up the places that are their own."""
        from ray.util.placement_group import remove_placement_group

        with undisturbed(), suppress(Exception):  # the cluster may be gone
            self.kill()
            if self._owns_group:
                remove_placement_group(self.group)


class StartedAhead:
    """Processes that start while their driver checks what it was given. A context manager: leaving it ends them.

    They give up their places where something of the cluster waits for them, which may be a pipeline of Ray Data, an
    actor or a placement group of ``datasets()``: the driver would wait for ever. Where it is another job's, the run has
    lost a head start of seconds.
    """

    def __init__(self, processes: WorkerProcesses, *, room: Room, every_s: float = _WAIT_EVERY_S) -> None:
        self._processes = processes
        self._room = room
        self._every_s = every_s
        self._given_up = False
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="raymlops-started-ahead", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with undisturbed():
            self.take()
            self._thread.join(_WAIT_EVERY_S)
            self._processes.end()

    def take(self) -> WorkerProcesses | None:
        """Return the processes, which keep their places from now on; None where they have given them up."""
        with self._lock:
            self._over.set()
            return None if self._given_up else self._processes

    def _watch(self) -> None:
        waited = 0
        while not self._over.wait(self._every_s):
            with suppress(Exception):  # a cluster that does not answer now is asked again
                waited = waited + 1 if self._room.blocks(self._processes.group.id.hex()) else 0
            if waited < _WAIT_LOOKS:
                continue
            with self._lock:
                self._given_up = not self._over.is_set()
            if self._given_up:
                self._processes.end()
            return


def start_ahead(section: TrainSection, *, room: Room) -> StartedAhead | None:
    """Start as many workers as a run will, while its driver checks what it was given; None where too few fit now."""
    with suppress(Exception):  # a cluster that does not answer now is waited for later
        workers = choose(section.workers, room=room.count())
        return None if workers is None else StartedAhead(WorkerProcesses(section, workers=workers), room=room)
    return None


def resources_of(section: TrainSection) -> dict[str, float]:
    """Return the resources of one worker, in Ray's words."""
    gpus = {"GPU": section.gpus_per_worker} if section.gpus_per_worker else {}
    return {"CPU": section.cpus_per_worker, **gpus}


def excluding(node_ids: Collection[str]) -> dict[str, str] | None:
    """Return Ray's label selector that keeps workers off these nodes; None for an empty collection."""
    if not node_ids:
        return None
    return {"ray.io/node-id": f"!in({','.join(sorted(node_ids))})"}


def import_libraries(names: Iterable[str], paths: Mapping[str, str]) -> None:
    """Import what every rank needs, in its process.

    Full collections would walk all of it again and again: a fifth of the time. Afterwards it is never collected.
    """
    take_over(paths)
    gc.disable()
    try:
        for name in names:
            import_module(name)
    finally:
        gc.freeze()
        gc.enable()


def _variables() -> dict[str, str]:
    """Return the variables of Ray Train that a user has set for workers."""
    from ray.train.v2._internal.constants import get_env_vars_to_propagate

    found: dict[str, str] = get_env_vars_to_propagate()
    return {name: value for name, value in found.items() if name not in _DRIVERS_OWN and name in os.environ}
