"""Ray Train 2.60 for one attempt: its controller runs in the driver, on worker processes that have started already.

By default Ray Train starts a process for its controller, which imports torch before any worker starts; one for a
barrier of ``ray.train.report``, which no rank calls; one that tells the autoscaler what the placement group tells it
anyway; and a process for each worker. Here only the last are left. Importing this module imports torch.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError
from ray.train.torch import TorchTrainer
from ray.train.torch.config import _setup_torch_process_group
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup, WorkerGroupContext
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.train.v2._internal.execution.worker_group.state import WorkerGroupState, _shutdown_workers
from ray.train.v2._internal.execution.worker_group.worker import Worker
from ray.train.v2._internal.util import invoke_context_managers, time_monotonic

from raymlops.cluster.process_wide import SharedContext
from raymlops.display import quiet
from raymlops.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from raymlops.training.supervision.processes import WorkerProcesses

_LISTENS_S = 5.0
"""Time for the first rank to listen; after that the others try, and say what is wrong."""
_LOOK_S = 0.01
_UNUSED_CALLBACKS = {
    # A detached actor that looks after placement groups: it outlives us, and asks a dashboard that may not be there.
    "PlacementGroupCleanerCallback",
    # One that hands out Ray Data, which our splits are not.
    "DatasetsCallback",
    # Workers stay where they are: a recipe's relative paths lead nowhere in a folder of Train's own.
    "WorkingDirectorySetupCallback",
}


class Trainer(TorchTrainer):  # type: ignore[misc]
    """Runs one attempt on ``processes``, in the thread that calls ``fit``."""

    def __init__(self, *args: Any, processes: WorkerProcesses, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._processes = processes

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [each for each in callbacks if type(each).__name__ not in _UNUSED_CALLBACKS]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        arguments["scaling_policy"] = _FixedSize(self.scaling_config)
        with quiet_train():
            controller = _Controller(self._processes, **arguments)
            asyncio.run(controller.run())
        return controller.get_result()


class _FixedSize(FixedScalingPolicy):  # type: ignore[misc]
    """Keeps the number of workers, and leaves the autoscaler to the placement group."""

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


class _Controller(TrainController):  # type: ignore[misc]
    def __init__(self, processes: WorkerProcesses, **arguments: Any) -> None:
        self._processes = processes
        super().__init__(**arguments)

    def _start_worker_group(self, num_workers: int, resources_per_worker: dict[str, float]) -> None:
        context = WorkerGroupContext(
            run_attempt_id=self._get_run_attempt_id(),
            train_fn_ref=self._train_fn_ref,
            num_workers=num_workers,
            resources_per_worker=resources_per_worker,
        )
        group = _StartedGroup(
            self._processes, self._train_run_context, context, self._worker_group_callbacks_to_propagate
        )
        group._start()  # noqa: SLF001 - as Train's own create does
        # Only now: the controller shuts down the group that it has, again and again where that one never started.
        self._worker_group = group


class _StartedGroup(WorkerGroup):  # type: ignore[misc]
    """Train's worker group on processes that somebody else starts and ends."""

    def __init__(self, processes: WorkerProcesses, *args: Any) -> None:
        super().__init__(*args)
        self._processes = processes

    def _start_impl(self, worker_group_state_builder: Any) -> None:
        context = self._worker_group_context
        with invoke_context_managers([callback.on_worker_group_start for callback in self._callbacks]):
            for callback in self._callbacks:
                callback.before_worker_group_start(context)
            if not self._processes.wait_for_places(self._worker_group_start_timeout_s):
                raise WorkerGroupStartupTimeoutError(num_workers=context.num_workers)
            try:
                workers = self._workers()
                worker_group_state_builder.with_workers(workers)
                self._worker_rank_to_replica_group_rank = {rank: rank for rank in range(len(workers))}
                self._init_train_context(workers, NoBarrier())
                self._worker_group_state = _State(
                    time_monotonic(), DefaultPlacementGroupHandle(self._processes.group), workers, None
                )
                for callback in self._callbacks:
                    callback.after_worker_group_start(self)
                ray.get([worker.actor.run_train_fn.remote(context.train_fn_ref) for worker in workers])
            except RayActorError as error:
                raise WorkerGroupStartupFailedError("a worker died while it started") from error
        for callback in self._callbacks:
            callback.after_worker_group_training_start(self)

    def _workers(self) -> list[Worker]:
        """Return the workers in the order of their ranks, once their processes run."""
        actors, resources = self._processes.actors, self._worker_group_context.resources_per_worker
        rows = ray.get([actor.get_metadata.remote() for actor in actors])
        found = [
            Worker(actor, row, resources, placement_group_bundle_index=index)
            for index, (actor, row) in enumerate(zip(actors, rows, strict=True))
        ]
        return self._assign_worker_ranks(found)  # type: ignore[no-any-return]

    def execute_single_async(self, rank: int, fn: Any, *args: Any, **kwargs: Any) -> Any:
        if rank and fn is _setup_torch_process_group:
            return super().execute_single_async(rank, join_after_first, fn, *args, **kwargs)
        return super().execute_single_async(rank, fn, *args, **kwargs)

    def _init_train_context_on_workers(
        self, workers: list[Worker], sync_actor: Any, train_context_args: dict[str, list[Any]]
    ) -> None:
        tasks = [
            worker.actor.init_train_context.remote(
                train_run_context=self._train_run_context,
                distributed_context=worker.distributed_context,
                synchronization_actor=sync_actor,
                storage_context=self._storage_context,
                worker_callbacks=self._worker_callbacks_to_propagate,
                controller_actor=None,
                **{name: values[rank] for name, values in train_context_args.items()},
            )
            for rank, worker in enumerate(workers)
        ]
        ray.get(tasks)


def join_after_first(join: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Join the process group once the first rank listens: who tries before waits half a second (torch 2.13)."""
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    deadline = time.monotonic() + _LISTENS_S
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(address, timeout=_LISTENS_S):
            break
        time.sleep(_LOOK_S)
    join(*args, **kwargs)


class NoBarrier:
    """Stands for the process in which the ranks of ``ray.train.report`` meet, and explains why it is not there."""

    def __getattr__(self, name: str) -> Any:
        """Refuse to meet.

        Raises:
            RecipeError: always, but to pickle, which looks for methods of its own.
        """
        if name.startswith("__"):
            raise AttributeError(name)
        raise RecipeError(
            "ray.train.report() and ray.train.collective are not available in a recipe",
            hint="Report with ctx.report(...); for anything else that ranks exchange use torch.distributed.",
        )


@dataclass(frozen=True)
class _State(WorkerGroupState):  # type: ignore[misc]
    def shutdown(self) -> None:
        _shutdown_workers(self.workers)


_shared = SharedContext()


def quiet_train() -> AbstractContextManager[None]:
    """Keep Train's log off the driver's terminal: what matters of it is said by us."""
    return _shared.entered(lambda: quiet("ray.train", level=logging.CRITICAL))
