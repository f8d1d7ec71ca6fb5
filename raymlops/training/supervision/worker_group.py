"""The worker group of one attempt: Ray Train workers from start to exit, and the state of the cluster's nodes.

Owns the thread in which Ray Train's trainer runs once, so that it replaces no signal handler. Decides nothing about
what follows the attempt.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

from raymlops.cluster.auth import variables_set
from raymlops.signals import undisturbed
from raymlops.training.supervision.heartbeat import interval_s
from raymlops.training.supervision.processes import resources_of
from raymlops.training.supervision.worker import collective_timeout_s, work

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from raymlops.config.train import TrainSection
    from raymlops.training.supervision.processes import WorkerProcesses


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


def _answers(row: dict[str, Any] | None) -> bool:
    if row is None or not row["Alive"]:
        return False
    try:
        with socket.create_connection((row["NodeManagerAddress"], row["NodeManagerPort"]), timeout=_ANSWER_S):
            return True
    except OSError:
        return False


_KILL_S = 10.0
"""Time for Ray Train to notice that its workers were killed."""


class WorkerGroup:
    """Runs ``worker.work`` on worker processes. A context manager: leaving it ends everything that was started."""

    def __init__(
        self, payload: dict[str, Any], section: TrainSection, *, processes: WorkerProcesses, folder: str
    ) -> None:
        """Prepare an attempt with the payload of its workers, in Ray Train's ``folder``."""
        self.workers = processes.workers
        self.error: BaseException | None = None
        """What Ray Train raised."""
        self.value: Any = None
        """What rank 0 returned."""
        self._payload = payload
        self._section = section
        self._processes = processes
        self._folder = folder
        self._name = f"attempt-{payload['attempt']}-{payload['token']}"
        self._thread = threading.Thread(target=self._run, name=f"raymlops-{self._name}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with undisturbed():
            self._processes.end()
            self.wait(_KILL_S)

    @property
    def done(self) -> bool:
        """Return whether the attempt has ended."""
        return not self._thread.is_alive()

    def wait(self, timeout_s: float) -> bool:
        """Wait up to ``timeout_s``; return whether the attempt has ended."""
        self._thread.join(timeout_s)
        return self.done

    def kill(self) -> None:
        """Kill the workers, stopped ones too. Ray Train then reports that they died."""
        if not self.done:
            self._processes.kill()

    def starting(self) -> bool:
        """Return whether the workers' placement group is still pending."""
        return not (self.done or self._processes.placed)

    def _run(self) -> None:
        try:
            self.value = self._trainer().fit().return_value
        except BaseException as error:
            self.error = error

    def _trainer(self) -> Any:
        from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig

        from raymlops.training.supervision.ray_train import Trainer

        section = self._section
        return Trainer(
            work,
            processes=self._processes,
            train_loop_config=self._payload,
            scaling_config=ScalingConfig(
                num_workers=self.workers,
                use_gpu=section.gpus_per_worker > 0,
                resources_per_worker=resources_of(section),
            ),
            torch_config=TorchConfig(
                backend=_backend(section),
                timeout_s=collective_timeout_s(section),
            ),
            run_config=RunConfig(
                name=self._name,
                storage_path=self._folder,
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )


@contextmanager
def train_environment(*, section: TrainSection, wait_s: float) -> Iterator[None]:
    """Set the variables that Ray Train reads from the driver's environment; those that a user has set are kept."""
    variables = {
        # How soon a killed worker is noticed.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(interval_s(section.workers[1]) / 2),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(max(wait_s, 1.0)),
        # Our hang detector comes first, and saves the stacks.
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(2 * section.hang_timeout_s + 60),
        # The monitor checks for drains; Train's watcher is another process for each attempt.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        # It would replace the driver's handlers.
        "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    }
    with variables_set({name: value for name, value in variables.items() if name not in os.environ}):
        yield


def _backend(section: TrainSection) -> str:
    if section.gpus_per_worker < 1:
        return "gloo"  # NCCL refuses two ranks on one card
    return "cpu:gloo,cuda:nccl" if section.cpu_offload else "nccl"  # NCCL reduces nothing in host memory
