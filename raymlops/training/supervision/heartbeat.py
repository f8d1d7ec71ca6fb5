"""A rank's heartbeat: a thread that reports the loop's progress, receives orders, and sends stacks on request.

Owns the thread and the promise that it never disturbs the training: it raises nothing, and ends when the mailbox is
gone. Knows nothing of Ray.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING

from raymlops.training.supervision.messages import Heartbeat, Orders

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY_S = 0.5
RANKS_A_SECOND = 400
"""Heartbeats that one mailbox may get; more than half as many ranks send them less often."""


class HeartbeatThread:
    """Sends the heartbeats of one rank. ``send`` returns the orders, or None where the attempt is over.

    ``send`` may raise TimeoutError, and is called again; after any other exception, or None, the thread ends.
    ``send_stacks`` sends stacks.
    """

    def __init__(
        self,
        rank: int,
        *,
        send: Callable[[Heartbeat], Orders | None],
        send_stacks: Callable[[str], None],
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rank = rank
        self._send = send
        self._send_stacks = send_stacks
        self._every_s = every_s
        self._clock = clock
        self._step = 0
        self._ticked_s = self._stepped_s = clock()
        self._done = False
        self._orders = Orders()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="raymlops-heartbeat", daemon=True)

    def start(self) -> None:
        """Start sending."""
        self._thread.start()

    def alive(self, step: int) -> None:
        """Note a sign of life after this many steps of the run. Cheap: call it at every step."""
        now_s = self._clock()
        if step != self._step:
            self._step, self._stepped_s = step, now_s
        self._ticked_s = now_s

    def tick(self) -> None:
        """Note a sign of life within the current step."""
        self.alive(self._step)

    def orders(self) -> str:
        """Return why to stop after a last checkpoint; empty while there is no reason."""
        return self._orders.reason

    def end(self, *, timeout_s: float = 5.0) -> None:
        """Send a last heartbeat, which says that the loop has ended."""
        self._done = True
        self._wake.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        shown = 0
        while True:
            done = self._done
            try:
                orders = self._send(self._heartbeat(done=done))
                if orders is None:
                    return
                self._orders = orders
                if orders.dump > shown:
                    shown = orders.dump
                    self._send_stacks(stacks())
            except TimeoutError:
                pass
            except Exception:
                return
            if done:
                return
            self._wake.wait(self._every_s)

    def _heartbeat(self, *, done: bool) -> Heartbeat:
        now_s = self._clock()
        return Heartbeat(
            self._rank,
            step=self._step,
            step_age_s=now_s - self._stepped_s,
            tick_age_s=now_s - self._ticked_s,
            done=done,
        )


def interval_s(world_size: int) -> float:
    """Return the seconds between two heartbeats of a rank, so that those of all ranks together stay few."""
    return max(EVERY_S, world_size / RANKS_A_SECOND)


def stacks() -> str:
    """Return the stack of each thread of this process, the main thread first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    frames = sorted(sys._current_frames().items(), key=lambda item: item[0] != main)  # noqa: SLF001 - the only way
    parts = [f"thread {names.get(ident, ident)}\n{''.join(traceback.format_stack(frame))}" for ident, frame in frames]
    return "\n".join(parts)
