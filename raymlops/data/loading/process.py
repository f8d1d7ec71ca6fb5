"""A loader process: reads one piece of rows after another, and sends each as a batch.

Loaders are forked by a process of their own, which has imported torch, has no thread but an allocator's that allows for
forks, and has unpickled the splits once: they share that memory. It is started by its own command rather than by
``multiprocessing``, which would import the training's main module again: a script without ``if __name__ == "__main__"``
would train again, and in a Ray worker it is Ray's. Forking the training's process is not safe either: it has threads of
torch, gRPC and MLflow.

Loaders end with that process, and it with the training's, however they end. Ctrl-C and SIGTERM may reach them too, and
are left to the training. Owns those processes. Knows nothing of the order of tasks.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import pickle
import signal
import socket
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from raymlops.data.loading.messages import Closed, pickled, readable, receive, send, send_heartbeat, send_pickled
from raymlops.errors import RecipeError, describe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.data.split import SplitData
    from raymlops.recipe import Progress

_LOOK_S = 0.5
_HEARTBEAT_S = 0.5
"""Heartbeats are at least so far apart."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, eq=False)
class Task:
    """A batch to be read: these ``rows`` of a split, in an epoch that ``seeds`` name.

    Of an iterable dataset, the rows of ``span`` are kept: its later pieces lie there.
    """

    number: int
    split: str
    rows: torch.Tensor
    seeds: tuple[int, int]
    span: range
    progress: Progress
    part: bool = False
    """Whether others read the other rows of the batch."""


@dataclass(frozen=True)
class Result:
    """The batch of a task, or what was raised: the exception and its causes, those of them that can be pickled."""

    number: int
    batch: Any = None
    errors: tuple[BaseException, ...] = ()

    def value(self) -> Any:
        """Return the batch, or raise what the loader raised."""
        if self.errors:
            error, *causes = self.errors
            at = error
            for cause in causes:
                at.__cause__ = cause
                at = cause
            raise error
        return self.batch


@dataclass(frozen=True)
class Ended:
    """A loader process that ended by itself."""

    lane: int
    how: str


def main(control: int, lanes: Sequence[int]) -> NoReturn:
    """Fork a loader for each lane, a socket's descriptor, and end with the process that started this one."""
    try:
        _main(control, lanes)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # an interpreter that has torch takes half a second to end


def _main(control: int, lanes: Sequence[int]) -> None:
    parent = os.getppid()
    upstream = socket.socket(fileno=control)
    with suppress(Closed):
        try:
            splits: Mapping[str, SplitData] = receive(upstream)[0]
        except Closed:
            raise
        except BaseException as error:
            send(upstream, Result(-1, errors=_picklable(error)))
            return
        gc.collect()
        gc.freeze()  # a collection in a loader would copy the shared memory of all objects
        alive = {_forked(at, lanes, splits, control=control): at for at in range(len(lanes))}
        for lane in lanes:
            os.close(lane)
        try:
            _watch(upstream, alive, parent=parent)
        finally:
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
            for pid in alive:  # nobody else may do so: a container's first process often does not
                os.waitpid(pid, 0)


def _watch(upstream: socket.socket, lanes: dict[int, int], *, parent: int) -> None:
    """Report and forget loaders that end, until the training's process closes its socket or is gone."""
    while os.getppid() == parent:
        if readable(upstream, within_s=_LOOK_S):
            return
        for pid in list(lanes):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                send(upstream, Ended(lanes.pop(pid), _described(status)))


def _described(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exited with {code}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def _forked(at: int, lanes: Sequence[int], splits: Mapping[str, SplitData], *, control: int) -> int:
    import pyarrow as pa

    server = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:  # it died before that
            os._exit(1)
        for other in (control, *lanes[:at], *lanes[at + 1 :]):
            os.close(other)
        for split in splits.values():
            split.loader = (at, len(lanes))
        faulthandler.register(signal.SIGUSR1)
        # There is a loader for each CPU that is to be used.
        torch.set_num_threads(1)
        pa.set_cpu_count(1)
        _serve(socket.socket(fileno=lanes[at]), splits)
    except Closed:
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def _serve(lane: socket.socket, splits: Mapping[str, SplitData]) -> NoReturn:
    last_s = 0.0

    def beat() -> None:
        nonlocal last_s
        if time.monotonic() - last_s > _HEARTBEAT_S:
            last_s = time.monotonic()
            send_heartbeat(lane, os.getpid())

    for split in splits.values():
        split.on_progress = beat
    beat()
    while True:
        task: Task = receive(lane)[0]
        last_s = time.monotonic()
        send_pickled(lane, *_pickled_result(task, splits[task.split]))


def _pickled_result(task: Task, split: SplitData) -> list[Any]:
    result = _result(task, split)
    try:
        return pickled(result)
    except Exception as error:
        refused = RecipeError(
            f"a batch of the {split.name} split cannot be sent from a loader process: {describe(error)}",
            hint="Return tensors, arrays, numbers and text from encode() or collate(), or set train.data_workers=0.",
        )
        refused.__cause__ = error
        return pickled(Result(task.number, errors=_picklable(refused)))


def _result(task: Task, split: SplitData) -> Result:
    try:
        split.recipe.progress = task.progress
        if split.seeds != task.seeds:
            split.start_epoch(seed=task.seeds[0], epoch=task.seeds[1])
        split.keep(task.span)
        return Result(task.number, split.part(task.rows) if task.part else split.batch(task.rows))
    except Closed:
        raise
    except (Exception, SystemExit) as error:
        return Result(task.number, errors=_picklable(error))


def _picklable(error: BaseException) -> tuple[BaseException, ...]:
    """Return an exception and its causes that can be pickled, the first with the lines where it was raised."""
    if not isinstance(error, Exception):
        error = RuntimeError(f"{type(error).__name__}: {error}")
    lines = "".join(traceback.format_exception(error)).rstrip()
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and len(found) < 16:
        with suppress(Exception):
            pickle.loads(pickle.dumps(cause))  # noqa: S301 - it was made here
            found.append(cause)
        cause = cause.__cause__
    if error not in found:
        found.insert(0, RuntimeError(f"{type(error).__name__}: {error}"))
    found[0].add_note(f"In a loader process:\n{lines}")
    return tuple(found)
