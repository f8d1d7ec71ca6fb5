"""A rank's heartbeat: a thread that says how far the loop is, brings orders back, and shows where all threads are.

Owns the thread and the promise that nothing of it reaches the training: it raises nothing, and where nobody listens
any more it ends. Knows nothing of who listens.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING

from raymlops.training.supervision.messages import Beat, Orders

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY_S = 0.5
RANKS_A_SECOND = 400
"""Heartbeats that one box may get; more ranks than half of that beat more slowly."""


class Pulse:
    """Beats for one rank. ``send`` delivers a beat and returns the orders, or None where nobody waits for it.

    ``send`` may raise TimeoutError, and is called again; after any other exception, or None, the pulse ends.
    ``show`` delivers stacks.
    """

    def __init__(
        self,
        rank: int,
        *,
        send: Callable[[Beat], Orders | None],
        show: Callable[[str], None],
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rank = rank
        self._send = send
        self._show = show
        self._every_s = every_s
        self._clock = clock
        self._step = self._ticks = 0
        self._ticked_s = self._stepped_s = clock()
        self._done = False
        self._orders = Orders()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="raymlops-pulse", daemon=True)

    def start(self) -> None:
        """Start to beat."""
        self._thread.start()

    def alive(self, step: int) -> None:
        """Say that the loop moves, and how many steps of the run are done. Costs nothing: call it at every step."""
        now_s = self._clock()
        if step != self._step:
            self._step, self._stepped_s = step, now_s
        self._ticked_s = now_s
        self._ticks += 1

    def tick(self) -> None:
        """Say that the loop moves, at the step that it is at."""
        self.alive(self._step)

    def orders(self) -> str:
        """Return why to end after a last checkpoint, or nothing while there is no reason."""
        return self._orders.reason

    def end(self, *, timeout_s: float = 5.0) -> None:
        """Beat a last time, to say that the loop has ended."""
        self._done = True
        self._wake.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        shown = 0
        while True:
            done = self._done
            try:
                orders = self._send(self._beat(done=done))
                if orders is None:
                    return
                self._orders = orders
                if orders.dump > shown:
                    shown = orders.dump
                    self._show(stacks())
            except TimeoutError:
                pass
            except Exception:
                return
            if done:
                return
            self._wake.wait(self._every_s)

    def _beat(self, *, done: bool) -> Beat:
        now_s = self._clock()
        return Beat(
            self._rank,
            step=self._step,
            ticks=self._ticks,
            step_age_s=now_s - self._stepped_s,
            tick_age_s=now_s - self._ticked_s,
            done=done,
        )


def interval_s(world_size: int) -> float:
    """Return the seconds between two beats of a rank, so that all ranks' together stay few."""
    return max(EVERY_S, world_size / RANKS_A_SECOND)


def stacks() -> str:
    """Return where each thread of this process is, the main thread first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    frames = sorted(sys._current_frames().items(), key=lambda item: item[0] != main)  # noqa: SLF001 - the only way
    parts = [f"thread {names.get(ident, ident)}\n{''.join(traceback.format_stack(frame))}" for ident, frame in frames]
    return "\n".join(parts)
