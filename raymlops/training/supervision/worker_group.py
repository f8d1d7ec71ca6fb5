"""The worker group of one attempt: Ray Train workers from start to exit, and the state of the cluster's nodes.

Owns Ray Train: its trainer runs once, in a thread, so that it replaces no signal handler. Decides nothing about what
follows the attempt.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

from raymlops.cluster.auth import variables_set
from raymlops.signals import undisturbed
from raymlops.training.supervision.worker import collective_timeout_s, work

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from raymlops.config.train import TrainSection
    from raymlops.training.supervision.channel import DriverChannel
    from raymlops.training.supervision.messages import Inbox


_ANSWER_S = 1.0


def draining() -> frozenset[str]:
    """Return the nodes that are being drained; none where Ray does not answer."""
    from ray._private.state import state  # Ray Train 2.60 asks here too: there is no public call

    with suppress(Exception):
        return frozenset(state.get_draining_nodes())
    return frozenset()


def dead(node_ids: Collection[str]) -> frozenset[str]:
    """Return which of these nodes have died; none where Ray does not answer.

    Ray itself takes up to 15 s to notice, in which it would start workers there again; a node whose raylet refuses
    a connection has died.
    """
    import ray

    with suppress(Exception):
        known = {row["NodeID"]: row for row in ray.nodes()} if node_ids else {}
        return frozenset(node_id for node_id in node_ids if not _answers(known.get(node_id)))
    return frozenset()


def excluding(node_ids: Collection[str]) -> dict[str, str] | None:
    """Return Ray's label selector that keeps workers off these nodes; None for an empty collection."""
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


_KILL_S = 10.0
"""Time for killed workers to exit before their controller is killed too."""
_LOOK_S = 0.1
_QUIET_S = 1.0
"""Time without a new placement group after which a killed controller counts as cleaned up."""
_UNUSED_CALLBACKS = {
    # A detached actor that looks after placement groups: it outlives us, and asks a dashboard that may not be there.
    "PlacementGroupCleanerCallback",
    # One that hands out Ray Data, which our splits are not: its start would cost a restart 2 s on two cores.
    "DatasetsCallback",
    # Workers stay where they are: a recipe's relative paths lead nowhere in a folder of Train's own.
    "WorkingDirectorySetupCallback",
}
"""What Ray Train 2.60 does by default for each worker group, and we do without."""


class WorkerGroup:
    """Runs ``worker.work`` on ``workers`` workers. A context manager: leaving it ends everything that it started."""

    def __init__(
        self,
        payload: dict[str, Any],
        section: TrainSection,
        *,
        channel: DriverChannel,
        workers: int,
        folder: str,
        without: Collection[str] = (),
        placement_group: str = "",
    ) -> None:
        """Prepare an attempt with the payload of its workers, in Ray Train's ``folder``, ``without`` these nodes.

        ``placement_group`` is the id of one that holds the workers, in the bundles after its first one.
        """
        self._channel = channel
        self.workers = workers
        self.error: BaseException | None = None
        """What Ray Train raised."""
        self.value: Any = None
        """What rank 0 returned."""
        self._payload = payload
        self._section = section
        self._folder = folder
        self._without = without
        self._placement_group = placement_group
        self._name = f"attempt-{payload['attempt']}-{payload['token']}"
        self._handles: dict[int, Any] = {}
        self._controller: Any = None
        self._thread = threading.Thread(target=self._run, name=f"raymlops-{self._name}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with undisturbed():
            self._end()

    @property
    def done(self) -> bool:
        """Return whether the attempt has ended."""
        return not self._thread.is_alive()

    def learn(self, inbox: Inbox) -> None:
        """Remember the handles that workers and controller sent."""
        self._controller = inbox.controller or self._controller
        self._handles.update({rank: info.handle for rank, info in inbox.infos.items()})

    def wait(self, timeout_s: float) -> bool:
        """Wait up to ``timeout_s``; return whether the attempt has ended."""
        self._thread.join(timeout_s)
        return self.done

    def kill(self) -> None:
        """Kill the workers, stopped ones too, or else the controller. Ray Train then reports that they died."""
        if self.done:
            return
        for handle in list(self._handles.values()) or [self._controller]:
            if handle is not None:
                _kill(handle)

    def starting(self) -> bool:
        """Return whether the workers' placement group is still pending."""
        if self._handles or self.done:
            return False
        if self._controller is None:
            return True
        return "CREATED" not in _placement_groups(_id(self._controller)).values()

    def _end(self) -> None:
        quiet_s = 0.0 if self.done else _QUIET_S
        deadline = time.monotonic() + _KILL_S
        while not self.done and not self._handles and self._controller is None and time.monotonic() < deadline:
            # Nothing can be killed before it has introduced itself.
            if (inbox := self._channel.take()) is not None:
                self.learn(inbox)
            self.wait(_LOOK_S)
        if self._controller is None:
            self._channel.close()
        self.kill()
        self.wait(_KILL_S)
        if self._controller is not None:
            _kill(self._controller)
            with suppress(Exception):  # the cluster may be gone
                _clean_up(self._controller, quiet_s=quiet_s)
        self.wait(_KILL_S)

    def _run(self) -> None:
        try:
            self.value = self._trainer().fit().return_value
        except BaseException as error:
            self.error = error

    def _trainer(self) -> Any:
        from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.train.v2._internal.execution.callback import ControllerCallback

        class Trainer(TorchTrainer):  # type: ignore[misc]
            def _create_default_callbacks(self) -> list[Any]:
                callbacks = super()._create_default_callbacks()
                return [each for each in callbacks if type(each).__name__ not in _UNUSED_CALLBACKS]

        class Introduce(ControllerCallback):  # type: ignore[misc]
            """Sends the controller's handle, by which it can be killed before its workers run."""

            def __init__(self, mailbox: Any, attempt: int, placement_group: str) -> None:
                self._mailbox = mailbox
                self._attempt = attempt
                self._placement_group = placement_group

            def after_controller_start(self, train_run_context: Any) -> None:
                import ray

                del train_run_context
                controller = ray.get_runtime_context().current_actor
                ray.get(self._mailbox.introduce.remote(controller, attempt=self._attempt))
                if self._placement_group:
                    place_workers_in(self._placement_group)

        section = self._section
        resources = {"CPU": section.cpus_per_worker}
        if section.gpus_per_worker:
            resources["GPU"] = section.gpus_per_worker
        return Trainer(
            work,
            train_loop_config=self._payload,
            scaling_config=ScalingConfig(
                num_workers=self.workers,
                use_gpu=section.gpus_per_worker > 0,
                resources_per_worker=resources,
                label_selector=excluding(self._without),
            ),
            torch_config=TorchConfig(
                # NCCL refuses two ranks on one card; gloo does not mind.
                backend="nccl" if section.gpus_per_worker >= 1 else "gloo",
                timeout_s=collective_timeout_s(section),
            ),
            run_config=RunConfig(
                name=self._name,
                storage_path=self._folder,
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
                callbacks=[Introduce(self._payload["mailbox"], self._payload["attempt"], self._placement_group)],
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )


def place_workers_in(group_id: str) -> None:
    """Let the worker groups of this process, a controller's own, use a placement group and leave it as it is.

    Ray Train (2.60) can only create one, and remove it.
    """
    import ray
    from ray.train.v2._internal.execution.worker_group import worker_group
    from ray.util.placement_group import PlacementGroup

    given = PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group_id)))

    class Kept(worker_group.DefaultPlacementGroupHandle):  # type: ignore[misc]
        def shutdown(self) -> None:
            return

    strategy = worker_group.PlacementGroupSchedulingStrategy

    def after_the_first(placement_group: Any, placement_group_bundle_index: int) -> Any:
        return strategy(placement_group=placement_group, placement_group_bundle_index=placement_group_bundle_index + 1)

    worker_group.placement_group = lambda **_: given
    worker_group.DefaultPlacementGroupHandle = Kept
    worker_group.PlacementGroupSchedulingStrategy = after_the_first


@contextmanager
def train_environment(*, section: TrainSection, wait_s: float) -> Iterator[None]:
    """Set the variables that Ray Train reads from the driver's environment; those that a user has set are kept."""
    variables = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(max(wait_s, 1.0)),
        # Our hang detector comes first, and saves the stacks.
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(2 * section.hang_timeout_s + 60),
        # The monitor checks for drains; Train's watcher is another process for each attempt.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }
    with variables_set({name: value for name, value in variables.items() if name not in os.environ}):
        yield


def _kill(handle: Any) -> None:
    import ray

    with suppress(Exception):  # it may have ended, and the cluster with it
        ray.kill(handle)


def _id(handle: Any) -> str:
    actor_id: str = handle._actor_id.hex()  # noqa: SLF001 - a handle has no public id
    return actor_id


def _clean_up(controller: Any, *, quiet_s: float) -> None:
    """Remove what a dead controller leaves: Ray kills its actors, but keeps its placement groups as long as the job.

    One that it requested in its last moment may appear after its death, so check more than once.
    """
    import ray
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    deadline = time.monotonic() + _KILL_S
    quiet_since: float | None = None
    while (now := time.monotonic()) < deadline:
        left = [found for found, state in _placement_groups(_id(controller)).items() if state != "REMOVED"]
        for group_id in left:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group_id)))
        dead = ray._private.state.actors(_id(controller)).get("State") == "DEAD"  # noqa: SLF001 - no public table
        if left or not dead:
            quiet_since = None
        else:
            quiet_since = quiet_since or now
            if now - quiet_since >= quiet_s:
                return
        time.sleep(_LOOK_S)


def _placement_groups(controller_id: str) -> dict[bytes, str]:
    """Return the state of each placement group that a controller created, which Ray's public table hides."""
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    table = state._connect_and_get_accessor().get_placement_group_table()  # noqa: SLF001
    rows = [gcs_pb2.PlacementGroupTableData.FromString(row) for row in table]
    return {
        row.placement_group_id: gcs_pb2.PlacementGroupTableData.PlacementGroupState.Name(row.state)
        for row in rows
        if row.creator_actor_id.hex() == controller_id
    }
