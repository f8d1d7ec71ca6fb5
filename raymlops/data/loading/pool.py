"""Loader processes: each reads the tasks of its lane in their order, some of them ahead.

Owns their start and end, which of them reads what, and what is said of one that dies or hangs. ``process`` owns what
runs in them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

import cloudpickle  # type: ignore[import-untyped]

from raymlops.data.loading.messages import Closed, pair, readable, receive, send, send_pickled
from raymlops.data.loading.process import Ended, Result, Task
from raymlops.errors import RecipeError, TrainingError, describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from raymlops.data.split import SplitData
    from raymlops.recipe import Batch

_START = (
    "import json, signal, sys; "
    "[signal.signal(each, signal.SIG_IGN) for each in (signal.SIGINT, signal.SIGTERM)]; "  # before what takes seconds
    "sys.path[:] = json.loads(sys.argv[1]); from raymlops.data.loading.process import main; "
)
_FIRST_S = 60.0
"""The processes import the recipe before their first heartbeat."""
_LOOK_S = 0.5
_TOLD_S = 2.0
"""How a process ended is told after its socket is closed."""
_SHOWN_ROWS = 5


class LoaderPool:
    """``processes`` loaders of ``splits``, which are started at once; each reads up to ``ahead`` batches ahead.

    ``on_progress`` is called for each heartbeat while a batch is waited for. A loader without one for ``timeout_s``
    is taken for hung.
    """

    def __init__(
        self,
        splits: Mapping[str, SplitData],
        *,
        processes: int,
        ahead: int,
        timeout_s: float,
        on_progress: Callable[[], None],
    ) -> None:
        self.ahead = ahead
        self._timeout_s = timeout_s
        self._on_progress = on_progress
        self._number = 0
        self._arrived: dict[int, Result] = {}
        self._dropped: set[int] = set()
        self._ended: dict[int, str] = {}
        self._closing = False
        self._splits = splits
        payload = _pickled(splits)
        self._control, theirs = pair()
        pairs = [pair() for _ in range(processes)]
        self._lanes = [mine for mine, _ in pairs]
        self._pids = [0] * processes
        passed = [theirs.fileno(), *(end.fileno() for _, end in pairs)]
        self._server = subprocess.Popen(  # noqa: S603 - this Python
            [sys.executable, "-c", f"{_START}main({passed[0]}, {passed[1:]})", json.dumps(sys.path)],
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        for _, end in pairs:
            end.close()
        theirs.close()
        with suppress(Closed):  # it is told from what is waited for
            send_pickled(self._control, payload)

    def __len__(self) -> int:
        return len(self._lanes)

    def send(self, lane: int, task: Task) -> None:
        """Let a lane read a task after those that it has."""
        with suppress(Closed):  # it is told from what is waited for
            send(self._lanes[lane], task)

    def number(self) -> int:
        """Return a number for a task, which no other one has."""
        self._number += 1
        return self._number

    def receive(self, lane: int, task: Task) -> Batch:
        """Wait for the batch of a task that ``lane`` was sent.

        Raises:
            RecipeError: what was raised in the loader, by an item above all.
            TrainingError: the loader died, or hangs.
        """
        since_s, limit_s = time.monotonic(), self._timeout_s if self._pids[lane] else max(self._timeout_s, _FIRST_S)
        while task.number not in self._arrived:
            if readable(self._lanes[lane], within_s=_LOOK_S):
                if not self._took_message(lane):
                    self._raise_died(lane, task)
                since_s, limit_s = time.monotonic(), self._timeout_s
            elif self._closing:
                raise Closed
            elif self._server.poll() is not None:
                self._raise_died(lane, task)
            elif time.monotonic() - since_s > limit_s:
                self._raise_hung(lane, task, waited_s=time.monotonic() - since_s)
        return self._arrived.pop(task.number).value()

    def drop(self, tasks: Iterable[Task]) -> None:
        """Forget tasks that were sent."""
        for task in tasks:
            if self._arrived.pop(task.number, None) is None:
                self._dropped.add(task.number)

    def stop_waiting(self) -> None:
        """Let another thread's ``receive`` end soon."""
        self._closing = True

    def close(self) -> None:
        """End all processes."""
        for end in (self._control, *self._lanes):
            end.close()
        with suppress(subprocess.TimeoutExpired):
            self._server.wait(timeout=5.0)
            return
        self._server.kill()  # its loaders end with it
        self._server.wait()

    def _took_message(self, lane: int) -> bool:
        """Take the next message of a lane; return False where there will be none."""
        try:
            found, pid = receive(self._lanes[lane])
        except Closed:
            return False
        if pid is not None:
            self._pids[lane] = pid
            self._on_progress()
        elif found.number in self._dropped:
            self._dropped.discard(found.number)
        else:
            self._arrived[found.number] = found
        return True

    def _raise_died(self, lane: int, task: Task) -> NoReturn:
        """Raise what the start of the loaders raised, or say how the lane's process ended."""
        until_s = time.monotonic() + _TOLD_S
        failed: Result | None = None
        with suppress(Closed):
            while lane not in self._ended and failed is None and time.monotonic() < until_s:
                if readable(self._control, within_s=_LOOK_S):
                    found = receive(self._control)[0]
                    if isinstance(found, Ended):
                        self._ended[found.lane] = found.how
                    else:
                        failed = found
        if failed is not None:
            failed.value()
        how = self._ended.get(lane, "ended with the process that started it")
        message = f"loader process {lane}{self._pid(lane)} {how} while it read {self._rows(task)}"
        memory = "The kernel sends SIGKILL when memory runs out: lower train.data_workers or train.prefetch."
        hint = memory if "SIGKILL" in how else "What it printed is in the log."
        raise TrainingError(message, hint=hint) from BrokenProcessPool(message)

    def _raise_hung(self, lane: int, task: Task, *, waited_s: float) -> NoReturn:
        with suppress(OSError):
            if self._pids[lane]:
                os.kill(self._pids[lane], signal.SIGUSR1)
                time.sleep(_LOOK_S)  # until its stack is written
        lasted = f"has sent no heartbeat for {waited_s:.0f} s"
        message = f"loader process {lane}{self._pid(lane)} {lasted}, reading {self._rows(task)}"
        raise TrainingError(
            message, hint="Its stack is in the log. Where a batch takes longer than that, raise train.hang_timeout_s."
        ) from TimeoutError(message)

    def _rows(self, task: Task) -> str:
        rows = task.rows[:_SHOWN_ROWS] % self._splits[task.split].rows  # an index also says how often its row came
        shown = ", ".join(map(str, rows.tolist()))
        more = ", ..." if len(task.rows) > _SHOWN_ROWS else ""
        return f"{len(task.rows)} rows of the {task.split} split ({shown}{more})"

    def _pid(self, lane: int) -> str:
        return f" (pid {self._pids[lane]})" if self._pids[lane] else ""


def _pickled(splits: Mapping[str, SplitData]) -> bytes:
    try:
        pickled: bytes = cloudpickle.dumps(dict(splits), protocol=5)
    except Exception as error:
        names = " and ".join(splits)
        raise RecipeError(
            f"the {names} data cannot be sent to loader processes: {describe(error)}",
            hint="Open files, connections and generators in __getitem__ or __iter__, where they are first needed, or "
            "set train.data_workers=0.",
        ) from error
    return pickled
