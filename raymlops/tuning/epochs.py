"""Turns a training that calls back after each epoch into one that is asked for the next.

Owns the thread between the two. Knows nothing of what is trained, of Ray or of sweeps.
"""

from __future__ import annotations

import queue
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future, ThreadPoolExecutor

Metrics = dict[str, float]


@dataclass(frozen=True)
class Epoch:
    """One epoch of a training."""

    number: int
    metrics: Metrics


class EpochStream:
    """The epochs of one training. ``train`` is called with a callback that returns True when it is to stop.

    The training runs in a thread and waits in its callback until it is asked to go on, so that a trial that is
    stopped has not begun an epoch for nothing.
    """

    def __init__(self, train: Callable[[Callable[[int, Metrics], bool]], Any], *, thread: ThreadPoolExecutor) -> None:
        self._out: queue.SimpleQueue[Epoch | None] = queue.SimpleQueue()
        self._go_on: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._waiting = False
        self._future: Future[Any] = thread.submit(self._run, train)

    def next(self) -> Epoch | None:
        """Return the next epoch, or None after the last.

        Raises:
            Exception: what the training raised.
        """
        if self._waiting:
            self._waiting = False
            self._go_on.put(True)
        epoch = self._out.get()
        if epoch is None:
            self._future.result()
        else:
            self._waiting = True
        return epoch

    def stop(self) -> None:
        """End the training in its callback and wait until its thread is free."""
        self._go_on.put(False)
        # What it raises on its way out concerns nobody any more.
        self._future.exception()

    def _run(self, train: Callable[[Callable[[int, Metrics], bool]], Any]) -> None:
        try:
            train(self._epoch)
        finally:
            self._out.put(None)

    def _epoch(self, number: int, metrics: Metrics) -> bool:
        self._out.put(Epoch(number, dict(metrics)))
        return not self._go_on.get()
