"""The mailbox as a Ray actor: the driver's end of the channel, and the end of each rank.

Owns how the calls travel, and what a late or missing answer means.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from raymlops.training.supervision.failure_policy import Raised
from raymlops.training.supervision.messages import Heartbeat, Inbox, Info, Mailbox, Orders

if TYPE_CHECKING:
    from raymlops.training.events import Event

_TAKE_S = 2.0
_BEAT_S = 30.0
_LOG_BYTES = 4096


class DriverChannel:
    """The driver's end. A context manager: leaving it kills the actor. ``begin`` replaces one that was lost."""

    def __init__(self) -> None:
        self.mailbox: Any = None
        """None once it has died, with the messages in it."""
        self._answer: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, attempt: int) -> None:
        """Prepare the mailbox for an attempt; events that have not been taken yet stay in it."""
        import ray

        try:
            if self.mailbox is not None:
                ray.get(self.mailbox.begin.remote(attempt), timeout=_BEAT_S)
                return
        except Exception:
            self.close()
        here = ray.get_runtime_context().get_node_id()
        # On this node: nothing is lost when another node dies.
        actor = ray.remote(num_cpus=0, label_selector={"ray.io/node-id": here})(Mailbox)
        # Not by a call: calls of others, who may be sooner, are not in order with ours.
        self.mailbox = actor.remote(attempt)

    def order(self, reason: str) -> None:
        """Order all ranks to stop after a last checkpoint."""
        if self.mailbox is not None:
            self.mailbox.order.remote(reason)

    def dump(self) -> None:
        """Request the stacks of all ranks."""
        if self.mailbox is not None:
            self.mailbox.dump.remote()

    def take(self) -> Inbox | None:
        """Return the inbox; None if the mailbox died, or answers late: the next call waits for the same answer."""
        import ray

        if self.mailbox is None:
            return None
        if self._answer is None:
            self._answer = self.mailbox.take.remote()
        try:
            inbox: Inbox = ray.get(self._answer, timeout=_TAKE_S)
        except TimeoutError:
            return None
        except Exception:
            self.close()
            return None
        self._answer = None
        return inbox

    def close(self) -> None:
        """Kill the mailbox."""
        import ray

        mailbox, self.mailbox, self._answer = self.mailbox, None, None
        if mailbox is not None:
            with suppress(Exception):  # the cluster may be gone, and the error that says so matters more
                ray.kill(mailbox)


class RankChannel:
    """A rank's end."""

    def __init__(self, mailbox: Any, *, attempt: int, rank: int) -> None:
        self._mailbox = mailbox
        self._attempt = attempt
        self._rank = rank
        self._known = False
        self._sent: Any = None

    def emit(self, event: Event) -> None:
        """Send an event."""
        self._sent = self._mailbox.put.remote(event)

    def flush(self) -> None:
        """Wait until all events have arrived: calls to an actor arrive in order, so waiting for the last is enough."""
        import ray

        if self._sent is not None:
            ray.get(self._sent)

    def heartbeat(self, heartbeat: Heartbeat) -> Orders | None:
        """Send a heartbeat, the first one with this process's info, and return the orders."""
        import ray

        info = None if self._known else _info()
        orders: Orders | None = ray.get(
            self._mailbox.heartbeat.remote(heartbeat, attempt=self._attempt, info=info), timeout=_BEAT_S
        )
        self._known = True
        return orders

    def stacks(self, text: str) -> None:
        """Send the stacks of this process."""
        self._mailbox.stacks.remote(self._rank, text, attempt=self._attempt)

    def failed(self, error: BaseException) -> None:
        """Send an exception, before Ray Train reports that there was one."""
        import ray

        with suppress(Exception):
            raised = Raised.by(error, log=log_tail(_log_path()))
            ray.get(self._mailbox.failed.remote(self._rank, raised, attempt=self._attempt), timeout=_BEAT_S)


def _info() -> Info:
    import ray

    context = ray.get_runtime_context()
    return Info(os.getpid(), context.get_node_id(), socket.gethostname(), context.current_actor, _log_path())


def log_tail(path: str) -> str:
    """Return the end of a worker's log; empty where this process cannot read it."""
    try:
        with Path(path).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _log_path() -> str:
    """Return the file of this worker's stderr: messages of GPU driver libraries appear only there."""
    import ray

    path: str = ray._private.worker.global_worker.get_err_file_path()  # noqa: SLF001 - no public call
    return path
