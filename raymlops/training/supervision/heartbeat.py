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
    from raymlops.training.supervision.channel import RankChannel

EVERY_S = 0.5
RANKS_A_SECOND = 400
"""Heartbeats that one mailbox may get; more than half as many ranks send them less often."""


class HeartbeatThread:
    """Sends the heartbeats of one rank over its channel.

    A heartbeat that raises TimeoutError is sent again; after any other exception, or without orders, the thread ends.
    """

    def __init__(
        self,
        rank: int,
        channel: RankChannel,
        *,
        every_s: float = EVERY_S,
    ) -> None:
        self._rank = rank
        self._channel = channel
        self._every_s = every_s
        self._step = 0
        self._ticked_s = self._stepped_s = time.monotonic()
        self._done = False
        self._orders = Orders()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="raymlops-heartbeat", daemon=True)

    def start(self) -> None:
        """Start sending."""
        self._thread.start()

    def alive(self, step: int) -> None:
        """Note a sign of life after this many steps of the run. Cheap: call it at every step."""
        now_s = time.monotonic()
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
                orders = self._channel.heartbeat(self._heartbeat(done=done))
                if orders is None:
                    return
                self._orders = orders
                if orders.dump > shown:
                    shown = orders.dump
                    self._channel.stacks(stacks())
            except TimeoutError:
                pass
            except Exception:
                return
            if done:
                return
            self._wake.wait(self._every_s)

    def _heartbeat(self, *, done: bool) -> Heartbeat:
        now_s = time.monotonic()
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
