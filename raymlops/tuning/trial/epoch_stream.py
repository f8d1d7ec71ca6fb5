"""Turns a training that calls back after each epoch into one that is asked for the next.

Owns the thread between the two, and how long whoever asks waits for it. Knows nothing of what is trained, of Ray or of
sweeps.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.training.loop.context import StopAskedError
from raymlops.tuning.trial.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable

Metrics = dict[str, Any]

_LOOK_S = 1.0
"""How often whoever waits looks whether the training still moves."""


@dataclass(frozen=True)
class Epoch:
    """One epoch of a training. ``last`` says that the training ends with it."""

    number: int
    metrics: Metrics
    step: int = 0
    last: bool = False


class TrialThread:
    """One thread for all trainings of a process: torch keeps a pool of its own for each thread that it meets.

    A daemon, so that a process can end although its training hangs.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="raymlops-trial", daemon=True)
        self._thread.start()

    @property
    def ident(self) -> int | None:
        """Return the thread's id."""
        return self._thread.ident

    def submit(self, job: Callable[[], None]) -> None:
        """Run a job, which raises nothing, after those before it."""
        self._jobs.put(job)

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            job()
            del job  # with it goes all that the training held


class EpochStream:
    """The epochs of one training. ``train`` is called with ``self.report``, which returns True when it is to stop.

    The training runs in a thread and waits in its callback until it is asked to go on, so that a trial that is
    stopped has not begun an epoch for nothing. Without ``holds`` it does not wait, as one on other processes.
    """

    def __init__(
        self,
        train: Callable[[EpochStream], Any],
        *,
        thread: TrialThread,
        watchdog: Watchdog | None = None,
        holds: bool = True,
    ) -> None:
        self.stopping = False
        """Whether the training is to end as soon as it can."""
        self._thread = thread
        self._watchdog = Watchdog() if watchdog is None else watchdog
        self._holds = holds
        self._out: queue.SimpleQueue[Epoch | None] = queue.SimpleQueue()
        self._go_on: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._waiting = False
        self._told = False
        self._ended = threading.Event()
        self._error: BaseException | None = None
        thread.submit(lambda: self._run(train))

    def next(self) -> Epoch | None:
        """Return the next epoch, or None after the last.

        Raises:
            TrialHungError: the training does not move; the process is to be ended.
            Exception: what the training raised.
        """
        if self._waiting:
            self._waiting = False
            self._watchdog.wakes()
            self._go_on.put(True)
        epoch = self._take()
        if epoch is None:
            error, self._error = self._error, None  # its frames hold the model
            if error is not None:
                raise error
        else:
            self._waiting = self._holds and not epoch.last
        return epoch

    def stop(self, *, timeout_s: float = math.inf) -> bool:
        """End the training in its callback or after its step, and wait until its thread is free; return whether it is.

        What it raises on its way out concerns nobody any more.

        Raises:
            TrialHungError: the training does not move; the process is to be ended.
        """
        self.stopping = True
        if self._waiting:
            self._waiting = False
            self._watchdog.wakes()
        self._go_on.put(False)
        until_s = time.monotonic() + timeout_s
        while not self._ended.wait(max(0.0, min(_LOOK_S, self._watchdog.left_s(), until_s - time.monotonic()))):
            if time.monotonic() >= until_s:
                return False
            self._look()
        return True

    def report(self, number: int, metrics: Metrics, *, step: int = 0, last: bool = False) -> bool:
        """Hand over an epoch, from the training's thread; return whether the training is to stop.

        ``last`` says that it ends by itself. One that goes on although it was told to stop is ended here.
        """
        if self._told and self._holds:
            raise StopAskedError("interrupted")
        waits = self._holds and not last
        if waits:
            self._watchdog.rests()
        self._out.put(Epoch(number, dict(metrics), step=step, last=last))
        self._told = not self._go_on.get() if waits else self.stopping
        return self._told

    def _take(self) -> Epoch | None:
        while not (self._ended.is_set() and self._out.empty()):
            try:
                return self._out.get(timeout=max(0.0, min(_LOOK_S, self._watchdog.left_s())))
            except queue.Empty:
                self._look()
        return None

    def _look(self) -> None:
        if self._watchdog.left_s() <= 0:
            raise self._watchdog.hung(self._thread.ident)
        self._watchdog.look()

    def _run(self, train: Callable[[EpochStream], Any]) -> None:
        try:
            train(self)
        except BaseException as error:
            self._error = error
        finally:
            self._watchdog.rests()
            self._ended.set()
            self._out.put(None)
