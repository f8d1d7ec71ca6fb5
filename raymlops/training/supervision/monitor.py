"""Monitor one attempt: forward events, kill hung workers, order a stop for a drained node, more room or a signal.

Owns the loop in the driver's thread while workers train. What to do after the attempt is decided elsewhere.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

from raymlops.errors import StorageError
from raymlops.storage import filesystem
from raymlops.training.supervision.failure_policy import Failure
from raymlops.training.supervision.messages import Inbox
from raymlops.training.supervision.notices import plural
from raymlops.training.supervision.scaling_policy import Growth
from raymlops.training.supervision.worker_group import draining

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from raymlops.training.supervision.channel import DriverChannel
    from raymlops.training.supervision.hang_detector import HangDetector
    from raymlops.training.supervision.notices import Notifier
    from raymlops.training.supervision.request import RunRequest
    from raymlops.training.supervision.worker_group import WorkerGroup

EVERY_S = 0.25
CLUSTER_EVERY_S = 2.0
"""How often nodes and room are checked."""
_LINGER_S = 5.0
"""Time for an attempt to end after a rank has raised: the others may wait for it in a collective."""
_END_S = 15.0
"""Time for killed workers to exit; after that the attempt is abandoned."""
_FIRST_STEP_S = 2.0
"""Time for the heartbeat of the first step to arrive."""
_ROOM_S = 8.0
"""Time for Ray to place tasks, before it is said that they wait."""
_START_S = 600.0
"""The least time for a worker to start and to join the others: a node without its libraries takes minutes."""
_STACKS_S = 3.0
"""Time for ranks to send their stacks."""
_LEAVE_ROOM = (
    "if datasets(), which each worker calls, waits for them, return the URI of Parquet files, or a Ray Data dataset, "
    "which runs once in the driver; or leave room: lower train.num_workers or train.cpus_per_worker, or add nodes"
)


class Monitor:
    """Monitors one attempt. ``excluded`` returns the nodes that do not count as room."""

    def __init__(
        self,
        group: WorkerGroup,
        detector: HangDetector,
        request: RunRequest,
        *,
        channel: DriverChannel,
        notify: Notifier,
        excluded: Callable[[], Collection[str]],
    ) -> None:
        self.inbox = Inbox()
        """The newest of the attempt, without the events."""
        self.failure: Failure | None = None
        """What was found here; what Ray Train found is in the worker group."""
        self.reason = ""
        """Why the workers were ordered to stop."""
        self.to = group.workers
        """The number of workers to start next, if there is room."""
        self._group = group
        self._detector = detector
        self._request = request
        self._section = request.section
        self._channel = channel
        self._notify = notify
        self._excluded = excluded
        self._growth = Growth(self._section.workers, after_s=self._section.grow_after_s)
        self._ordered = ""
        self._stopped_s = self._deadline_s = self._given_up_s = inf
        self._placeless = 0
        self._placed_s = inf
        self._waits_s = inf
        """Since when the workers have left something no room, before their first step."""
        self._waiting = ""
        self._wait_said = False
        self._raised_s: float | None = None

    def run(self) -> None:
        """Monitor the attempt until it has ended.

        Raises:
            KeyboardInterrupt: there was a reason to stop, and nothing left to save or no more time for it.
        """
        checked_s = time.monotonic()
        while not self._group.wait(EVERY_S):
            now_s = time.monotonic()
            if now_s >= self._given_up_s:
                return
            self._poll()
            if self._channel.mailbox is None:
                self._kill(Failure("mailbox_died", "MailboxDiedError", "the mailbox of its workers died"))
            hang = self._detector.observe(self.inbox.heartbeats, now_s=now_s)
            self._notify.observe(self._detector)
            self._check_stop(now_s)
            if hang is not None and self.failure is None:
                if self._waiting and not self._detector.stepping:
                    hang = replace(hang, message=f"{hang.message}; {self._waiting}")
                self._save_stacks(hang.message)
                info = None if hang.rank is None else self.inbox.infos.get(hang.rank)
                self._kill(hang if info is None else replace(hang, node_id=info.node_id))
            self._kill_lingerers(now_s)
            if now_s - checked_s >= CLUSTER_EVERY_S:
                checked_s = now_s
                self._check_cluster(now_s)
        self._poll()
        self._detector.observe(self.inbox.heartbeats, now_s=time.monotonic())

    def _poll(self) -> None:
        """Poll the mailbox and forward events."""
        inbox = self._channel.take()
        if inbox is not None:
            self.inbox = inbox
            for event in inbox.events:
                self._request.writer(event)

    def _check_stop(self, now_s: float) -> None:
        if now_s >= self._deadline_s:
            self._notify(f"the last checkpoint was not written within {self._section.stop_grace_s:g} s")
            raise KeyboardInterrupt
        reason = self._request.stop()
        if not reason:
            return
        if self._ordered != reason:
            self._stopped_s, self._deadline_s = now_s, now_s + self._section.stop_grace_s
            self._order(reason)  # the caller has announced the reason
        if not self._detector.stepping and (not self.inbox.infos or now_s - self._stopped_s > _FIRST_STEP_S):
            raise KeyboardInterrupt  # nothing was done since the newest checkpoint

    def _kill_lingerers(self, now_s: float) -> None:
        if not self.inbox.raised:
            return
        self._raised_s = self._raised_s or now_s
        if now_s - self._raised_s >= _LINGER_S:
            self._group.kill()

    def _check_cluster(self, now_s: float) -> None:
        if self._group.starting():
            self._check_places()
        else:
            self._check_start(now_s)
        self._check_room(now_s)
        if self._ordered or not self.inbox.infos:
            return
        leaving = draining() & {info.node_id for info in self.inbox.infos.values()}
        if leaving:
            names = ", ".join(sorted(node_id[:12] for node_id in leaving))
            self._order("drained", f"node {names} is about to leave")
            return
        fewest, most = self._section.workers
        if most in {fewest, self._group.workers}:
            return
        to = self._growth.observe(
            workers=self._group.workers,
            room=self._request.count_room(excluded=self._excluded),
            stepping=self._detector.stepping,
            now_s=now_s,
        )
        if to is not None:
            self.to = to
            self._order("resized", f"there has been room for {to} workers for {self._section.grow_after_s:g} s")

    def _check_places(self) -> None:
        """Kill an attempt whose placement was lost, with a node or to others, before its workers started."""
        workers = self._group.workers
        self._placeless = (
            self._placeless + 1 if self._request.count_room(excluded=self._excluded, default=inf) < workers else 0
        )
        if self._placeless <= 1:
            return
        assert self._request.room is not None
        if self._request.room.may_grow(workers):
            self._placeless = -5  # an autoscaler takes its time, and querying it costs a task on the head
        else:
            self._kill(
                Failure("places_lost", "PlacesLostError", "the places of its workers were lost before they started")
            )

    def _check_start(self, now_s: float) -> None:
        """Kill an attempt some of whose workers never begin: nothing else has a timeout until all have joined."""
        self._placed_s = min(self._placed_s, now_s)
        missing = self._group.workers - len(self.inbox.infos)
        allowed_s = max(self._section.hang_timeout_s, _START_S)
        if missing and now_s - self._placed_s > allowed_s:
            message = f"{missing} of {plural(self._group.workers)} have not started within {allowed_s:.0f} s"
            self._kill(Failure("hang", "HangError", message, step=self._detector.step))

    def _check_room(self, now_s: float) -> None:
        """Say which Ray tasks the workers leave no room for before their first step: ``datasets()`` may wait for them.

        They may as well be another job's, and those of this one run: the attempt ends by its timeout alone.
        """
        if self._detector.stepping or not self.inbox.infos or self._request.room is None:
            return
        with suppress(Exception):  # a cluster that does not answer now is asked again
            nodes = [info.node_id for info in self.inbox.infos.values()]
            self._waiting = self._request.room.waiting(workers=nodes)
        self._waits_s = min(self._waits_s, now_s) if self._waiting else inf
        if now_s - self._waits_s >= _ROOM_S and not self._wait_said:
            self._wait_said = True
            self._notify(f"{self._waiting}: {_LEAVE_ROOM}")

    def _order(self, order: str, reason: str = "") -> None:
        self._ordered, self.reason = order, reason
        if reason:
            self._notify(f"{reason}: the workers write a checkpoint and stop")
        self._channel.order(order)

    def _kill(self, failure: Failure) -> None:
        if self.failure is None:
            self.failure = failure
            self._given_up_s = time.monotonic() + _END_S
        self._group.kill()

    def _save_stacks(self, hang: str) -> None:
        """Write the stacks of all ranks that still answer to a file."""
        with suppress(Exception):
            self._channel.dump()
        deadline_s = time.monotonic() + _STACKS_S
        answering = {
            rank for rank, beat in self.inbox.heartbeats.items() if not beat.done and beat.silent_s < _STACKS_S
        }
        while time.monotonic() < deadline_s and not answering <= self.inbox.stacks.keys():
            if self._group.wait(EVERY_S) or self._channel.mailbox is None:
                break
            self._poll()
        parts = [f"{hang}\n"]
        for rank, info in sorted(self.inbox.infos.items()):
            text = self.inbox.stacks.get(rank, "no answer: the process is stopped, or in code that holds the GIL\n")
            parts.append(f"=== rank {rank}: process {info.pid} on {info.host}, node {info.node_id}\n{text}")
        name = f"step-{self._detector.step:08d}-{time.strftime('%H%M%S')}.txt"
        uri = filesystem.join(self._request.files_uri, "stacks", name)
        try:
            filesystem.write_bytes(uri, "\n".join(parts).encode())
            self._notify(f"{hang}; the stacks of all ranks are in {uri}")
        except StorageError as error:
            self._notify(f"{hang}; the stacks of the ranks could not be written: {error.message}")
