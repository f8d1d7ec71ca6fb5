"""Turn a training that calls back after each epoch into a stream of epochs.

Owns the training's thread and the waiting for it. Ray Tune calls ``step`` for each epoch, and a training loop calls a
callback; one of the two must be inverted. Knows nothing of what is trained, of Ray or of sweeps.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.training.loop.outcome import StopAskedError
from raymlops.tuning.trial.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable

Metrics = dict[str, Any]

_CHECK_S = 1.0
"""How often ``next`` checks for a hang while it waits."""


@dataclass(frozen=True)
class Epoch:
    """One epoch of a training. ``last`` says that the training ends with it."""

    number: int
    metrics: Metrics
    step: int = 0
    last: bool = False


class TrialThread:
    """One thread for all trainings of a process: torch keeps a thread pool for each thread that uses it.

    A daemon, so that the process can exit while its training hangs.
    """

    def __init__(self, *, after: Callable[[], None] = lambda: None) -> None:
        """Call ``after`` after each training, once what it held is released."""
        self._after = after
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="raymlops-trial", daemon=True)
        self._thread.start()

    @property
    def ident(self) -> int | None:
        """Return the thread's id."""
        return self._thread.ident

    def submit(self, job: Callable[[], None]) -> None:
        """Run a job, which must not raise, after the previous ones."""
        self._jobs.put(job)

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            job()
            del job  # releases what the training held
            self._after()


class EpochStream:
    """The epochs of one training. ``train`` is called with this stream, whose ``report`` returns True to stop it.

    The training runs in a thread and waits in its callback until the next epoch is requested, so that a stopped trial
    has not started an epoch in vain. Without ``holds`` it does not wait, as a training in other processes.
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
        """Whether the training must stop as soon as possible."""
        self._thread = thread
        self._watchdog = Watchdog() if watchdog is None else watchdog
        self._holds = holds
        self._out: queue.SimpleQueue[Epoch | None] = queue.SimpleQueue()
        self._continue: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._waiting = False
        self._stop_sent = False
        self._ended = threading.Event()
        self._error: BaseException | None = None
        thread.submit(lambda: self._run(train))

    def next(self, *, left_s: Callable[[], float] = lambda: math.inf) -> Epoch | None:
        """Return the next epoch, or None after the last.

        Raises:
            TimeoutError: it does not come in ``left_s()`` seconds. ``stop`` must follow.
            TrialHungError: the training hangs; the process must be ended.
            Exception: what the training raised.
        """
        if self._waiting:
            if left_s() <= 0:
                raise TimeoutError
            self._waiting = False
            self._watchdog.resume()
            self._continue.put(True)
        epoch = self._take(left_s)
        if epoch is None:
            error, self._error = self._error, None  # its frames hold the model
            if error is not None:
                raise error
        else:
            self._waiting = self._holds and not epoch.last
        return epoch

    def stop(self, *, timeout_s: float = math.inf) -> bool:
        """Stop the training in its callback or after its step; wait for its thread and return whether it is free.

        An exception of the stopped training is ignored.

        Raises:
            TrialHungError: the training hangs; the process must be ended.
        """
        self.stopping = True
        if self._waiting:
            self._waiting = False
            self._watchdog.resume()
        self._continue.put(False)
        until_s = time.monotonic() + timeout_s
        while not self._ended.wait(max(0.0, min(_CHECK_S, self._watchdog.left_s(), until_s - time.monotonic()))):
            if time.monotonic() >= until_s:
                return False
            self._check()
        return True

    def report(self, number: int, metrics: Metrics, *, step: int = 0, last: bool = False) -> bool:
        """Put an epoch, from the training's thread; return whether the training must stop.

        ``last`` says that it ends by itself. A training that ignores the request to stop is ended here.
        """
        if self._stop_sent and self._holds:
            raise StopAskedError("interrupted")
        waits = self._holds and not last
        if waits:
            self._watchdog.pause()
        self._out.put(Epoch(number, dict(metrics), step=step, last=last))
        self._stop_sent = not self._continue.get() if waits else self.stopping
        return self._stop_sent

    def _take(self, left_s: Callable[[], float]) -> Epoch | None:
        while not (self._ended.is_set() and self._out.empty()):
            try:
                return self._out.get(timeout=max(0.0, min(_CHECK_S, self._watchdog.left_s(), left_s())))
            except queue.Empty:
                if left_s() <= 0:
                    raise TimeoutError from None
                self._check()
        return None

    def _check(self) -> None:
        if self._watchdog.left_s() <= 0:
            raise self._watchdog.error(self._thread.ident)
        self._watchdog.defer_backstop()

    def _run(self, train: Callable[[EpochStream], Any]) -> None:
        try:
            train(self)
        except BaseException as error:
            self._error = error
        finally:
            self._watchdog.pause()
            self._ended.set()
            self._out.put(None)
