"""The same loop on Ray Train workers: what travels to them, and how events, results and errors come back.

The only file of this room that imports Ray. A worker gets plain data and rebuilds recipe and splits itself.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymlops.errors import RaymlopsError, RecipeError, TrainingError
from raymlops.training import storage
from raymlops.training.drain import Drain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from raymlops.project import Project
    from raymlops.training.context import Outcome
    from raymlops.training.data import Prepared
    from raymlops.training.progress import Event

_TAKE_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Place:
    """Where a run's files go: ``runs_uri`` is the folder of all runs."""

    runs_uri: str
    run_id: str

    @property
    def checkpoints_uri(self) -> str:
        """Return the folder of the run's checkpoints."""
        return storage.join(self.runs_uri, self.run_id, "checkpoints")


def fit(
    project: Project,
    prepared: Prepared,
    *,
    place: Place,
    unused_parameters: bool,
    emit: Callable[[Event], None],
) -> tuple[Outcome, str]:
    """Train on ``train.num_workers`` workers and return what was reached and the URI of the best checkpoint.

    Ray must be initialised. Events are passed to ``emit`` from a thread of this process.

    Raises:
        RaymlopsError: the one that a worker raised.
        TrainingError: a worker or the controller failed otherwise.
        KeyboardInterrupt: the training was interrupted (SIGINT or SIGTERM); its workers have ended.
    """
    import ray
    from ray.train import RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    section = project.spec.train
    resources = {"CPU": section.cpus_per_worker}
    if section.gpus_per_worker:
        resources["GPU"] = section.gpus_per_worker
    mailbox = ray.remote(num_cpus=0)(_Mailbox).remote()
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "project": project.to_dict(),
            "state": prepared.state,
            "rows": {name: split.rows for name, split in prepared.splits.items()},
            "checkpoints_uri": place.checkpoints_uri,
            "unused_parameters": unused_parameters,
            "sys_path": [str(Path(entry).absolute()) for entry in sys.path],
            "cwd": str(Path.cwd()),
            "mailbox": mailbox,
        },
        scaling_config=ScalingConfig(
            num_workers=section.num_workers,
            use_gpu=section.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        # NCCL refuses two ranks on one card; gloo does not mind.
        torch_config=TorchConfig(backend="nccl" if section.gpus_per_worker >= 1 else "gloo"),
        run_config=RunConfig(
            name=place.run_id,
            storage_path=place.runs_uri,
            logging_config=_quiet_logging(),
        ),
    )
    try:
        with Drain(_Taker(mailbox), emit), _worker_folder_kept(), _sigint_restored():
            result = trainer.fit()
    except TrainingFailedError as error:
        raise _ours(error) from error
    except SystemExit as error:
        # Ray's handlers of SIGINT and SIGTERM end the workers and then this process, with a code that depends on
        # where they interrupt it. Whether it ends, and how, is for the caller to say.
        raise KeyboardInterrupt from error
    finally:
        with suppress(Exception):  # the cluster may be gone, and the error that says so matters more
            ray.kill(mailbox)
    outcome, best_uri = result.return_value
    return outcome, best_uri


class _Mailbox:
    """An actor between rank 0 and the driver: a list of events, fetched by whoever writes them."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def put(self, event: Event) -> None:
        self._events.append(event)

    def take(self) -> list[Event]:
        events, self._events = self._events, []
        return events


class _Taker:
    """The driver's end of a mailbox. An answer that is late is waited for again: the mailbox holds it no more."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._answer: Any = None

    def __call__(self) -> list[Event]:
        import ray

        if self._answer is None:
            self._answer = self._mailbox.take.remote()
        events: list[Event] = ray.get(self._answer, timeout=_TAKE_TIMEOUT_S)
        self._answer = None
        return events


def _worker(config: dict[str, Any]) -> tuple[Outcome, str] | None:
    """Run one rank."""
    if Path(config["cwd"]).is_dir():
        os.chdir(config["cwd"])
    sys.path += [entry for entry in config["sys_path"] if entry not in sys.path and Path(entry).exists()]

    import ray
    import ray.train.torch
    import torch

    from raymlops.project import Project
    from raymlops.training.checkpoint import FolderSaver
    from raymlops.training.context import TrainContext
    from raymlops.training.data import prepare
    from raymlops.training.loop import default_loop

    project = Project.from_dict(config["project"])
    section = project.spec.train
    torch.set_num_threads(section.threads_per_worker or max(1, int(section.cpus_per_worker)))
    prepared = prepare(project, state=config["state"])
    rows = {name: split.rows for name, split in prepared.splits.items()}
    if rows != config["rows"]:
        raise RecipeError(
            f"{type(prepared.recipe).__name__}.datasets() returned {rows} rows on a worker, "
            f"but {config['rows']} on the driver",
            hint="It must return the same rows in every process: seed what is random, read what all nodes can read.",
        )
    rank = ray.train.get_context().get_world_rank()
    sent: list[Any] = []

    def emit(event: Event) -> None:
        sent[:] = [config["mailbox"].put.remote(event)]

    saver = FolderSaver(
        config["checkpoints_uri"], every_epochs=section.checkpoint_every_epochs, keep=section.keep_checkpoints
    )
    context = TrainContext(
        section,
        prepared,
        saver=saver,
        emit=emit,
        rank=rank,
        world_size=ray.train.get_context().get_world_size(),
        device=ray.train.torch.get_device() if section.gpus_per_worker else "cpu",
        unused_parameters=config["unused_parameters"],
    )
    outcome = context.run(default_loop)
    if rank != 0:
        return None
    # Calls to an actor arrive in order, so the last one vouches for all.
    ray.get(sent)
    return outcome, saver.best_uri


def _ours(error: Exception) -> RaymlopsError:
    """Return the exception of ours that a worker raised, or one that says what else went wrong."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    for _, failure in sorted(failures.items()):
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, RaymlopsError):
                return cause
            cause = getattr(cause, "cause", None) or getattr(cause, "base_exc", None) or cause.__cause__
    lines = str(next(iter(failures.values()), error)).strip().splitlines() or [type(error).__name__]
    return TrainingError(
        f"the training failed on {f'rank {min(failures)}' if failures else 'the cluster'}: {lines[-1]}",
        hint="The whole trace is in the worker's log: in logs/train of Ray's session folder, or in the Ray dashboard.",
    )


@contextmanager
def _worker_folder_kept() -> Iterator[None]:
    """Keep Ray Train from moving workers to a folder of its own, where a recipe's relative paths lead nowhere."""
    name = "RAY_CHDIR_TO_TRIAL_DIR"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _sigint_restored() -> Iterator[None]:
    """Give Ctrl-C back its meaning: ``fit`` of Ray 2.60 replaces the handler for good."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if handler is None else handler)


def _quiet_logging() -> Any:
    from ray.train import LoggingConfig

    return LoggingConfig(log_level="ERROR")
