"""One attempt overseen: events passed on, hangs ended, orders given when a node leaves, room appears or a signal came.

Owns the loop in the driver's thread while workers train. What was found is returned; how the run goes on is decided
elsewhere.
"""

from __future__ import annotations

import time
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING

from raymlops.errors import StorageError
from raymlops.storage import filesystem
from raymlops.training.supervision.channel import PostLostError
from raymlops.training.supervision.failure_policy import Failure
from raymlops.training.supervision.messages import Letters
from raymlops.training.supervision.scaling_policy import Growth
from raymlops.training.supervision.worker_group import draining

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from raymlops.config.train import TrainSection
    from raymlops.training.supervision.channel import Post
    from raymlops.training.supervision.hang_detector import Hang, Watch
    from raymlops.training.supervision.notices import Teller
    from raymlops.training.supervision.scaling_policy import Room
    from raymlops.training.supervision.worker_group import Attempt

EVERY_S = 0.25
LOOK_AROUND_EVERY_S = 2.0
"""How often nodes and room are looked at."""
_LINGER_S = 5.0
"""How long an attempt may take to end after a rank has raised: the others may wait for it in an exchange."""
_END_S = 15.0
"""How long workers that were killed may take to be gone; then the attempt is left to end without them."""
_FIRST_STEP_S = 2.0
"""How long a heartbeat may be on its way that tells of the first step."""
_STACKS_S = 3.0
"""How long ranks may take to say where they hang."""


class Oversight:
    """Oversees one attempt. ``without`` returns the nodes that do not count as room."""

    def __init__(
        self,
        attempt: Attempt,
        watch: Watch,
        *,
        section: TrainSection,
        post: Post,
        tell: Teller,
        room: Room,
        stop: Callable[[], str],
        without: Callable[[], Collection[str]],
        stacks_uri: str,
    ) -> None:
        self.letters = Letters()
        """The newest of the attempt, without the events."""
        self.failure: Failure | None = None
        """What was found here; what Ray Train found is in the attempt."""
        self.reason = ""
        """Why the workers were told to end."""
        self.to = attempt.workers
        """How many workers there should be room for next."""
        self._attempt = attempt
        self._watch = watch
        self._section = section
        self._post = post
        self._tell = tell
        self._room = room
        self._stop = stop
        self._without = without
        self._stacks_uri = stacks_uri
        self._growth = Growth(section.workers, after_s=section.grow_after_s)
        self._ordered = ""
        self._stopped_s = self._deadline_s = self._given_up_s = inf
        self._placeless = 0
        self._raised_s: float | None = None

    def run(self) -> None:
        """Oversee the attempt until it has ended.

        Raises:
            KeyboardInterrupt: there was a reason to stop, and nothing more to save or no more time for it.
        """
        looked_s = time.monotonic()
        while not self._attempt.wait(EVERY_S):
            now_s = time.monotonic()
            if now_s >= self._given_up_s:
                return
            if not self._take():
                self._end(Failure("controller_died", "MailboxDiedError", "the mailbox of its workers died"))
                continue
            hang = self._watch.look(self.letters.beats, now_s=now_s)
            self._tell.look(self._watch)
            self._check_stop(now_s)
            if hang is not None and self.failure is None:
                self._show_stacks(hang)
                self._end(self._failure_of(hang))
            self._end_lingerers(now_s)
            if now_s - looked_s >= LOOK_AROUND_EVERY_S:
                looked_s = now_s
                self._look_around(now_s)
        self._take()
        self._watch.look(self.letters.beats, now_s=time.monotonic())

    def _take(self) -> bool:
        """Take what came in and pass events on; return whether the mailbox is still there."""
        if self.failure is not None and self._post.mailbox is None:
            return True
        try:
            letters = self._post.take()
        except PostLostError:
            return False
        if letters is not None:
            self.letters = letters
            self._attempt.know(letters)
            self._tell.pass_on(letters.events)
        return True

    def _check_stop(self, now_s: float) -> None:
        if now_s >= self._deadline_s:
            self._tell(f"the last checkpoint was not there within {self._section.stop_grace_s:g} s")
            raise KeyboardInterrupt
        reason = self._stop()
        if not reason:
            return
        if self._ordered != reason:
            self._stopped_s, self._deadline_s = now_s, now_s + self._section.stop_grace_s
            self._order(reason)  # whoever knows the reason has said it
        if not self._watch.stepping and (not self.letters.infos or now_s - self._stopped_s > _FIRST_STEP_S):
            raise KeyboardInterrupt  # nothing was done since the newest checkpoint

    def _end_lingerers(self, now_s: float) -> None:
        if not self.letters.raised:
            return
        self._raised_s = self._raised_s or now_s
        if now_s - self._raised_s >= _LINGER_S:
            self._attempt.kill()

    def _look_around(self, now_s: float) -> None:
        if self._attempt.starting():
            self._check_places()
        if self._ordered or not self.letters.infos:
            return
        leaving = draining() & {info.node_id for info in self.letters.infos.values()}
        if leaving:
            names = ", ".join(sorted(node_id[:12] for node_id in leaving))
            self._order("drained", f"node {names} is about to leave")
            return
        fewest, most = self._section.workers
        if most in {fewest, self._attempt.workers}:
            return
        grow = self._growth.look(
            workers=self._attempt.workers,
            room=self._count(default=0),
            stepping=self._watch.stepping,
            now_s=now_s,
        )
        if grow is not None:
            self.to = grow.to
            self._order("resized", str(grow))

    def _check_places(self) -> None:
        """End an attempt whose workers' places went, with a node or to others, before they were taken."""
        workers = self._attempt.workers
        self._placeless = self._placeless + 1 if self._count(default=inf) < workers else 0
        if self._placeless <= 1:
            return
        if self._room.may_grow(workers):
            self._placeless = -5  # an autoscaler takes its time, and asking for it costs a task on the head
        else:
            self._end(Failure("worker_died", "PlacesLostError", "the places of its workers were lost at the start"))

    def _count(self, *, default: float) -> float:
        """Return how many more workers there is room for; a cluster that does not answer now may answer next time."""
        with suppress(Exception):
            return self._room.count(without=self._without())
        return default

    def _order(self, order: str, reason: str = "") -> None:
        self._ordered, self.reason = order, reason
        if reason:
            self._tell(f"{reason}: the workers write a checkpoint and make way")
        self._post.order(order)

    def _end(self, failure: Failure) -> None:
        if self.failure is None:
            self.failure = failure
            self._given_up_s = time.monotonic() + _END_S
        self._attempt.kill()

    def _failure_of(self, hang: Hang) -> Failure:
        info = None if hang.rank is None else self.letters.infos.get(hang.rank)
        return Failure(
            "hang",
            "HangError",
            hang.message,
            rank=hang.rank,
            node_id="" if info is None else info.node_id,
            step=self._watch.step,
        )

    def _show_stacks(self, hang: Hang) -> None:
        """Write down where all ranks are, as far as they still answer."""
        with suppress(Exception):
            self._post.dump()
        deadline_s = time.monotonic() + _STACKS_S
        answering = {rank for rank, beat in self.letters.beats.items() if not beat.done and beat.silent_s < _STACKS_S}
        while time.monotonic() < deadline_s and not answering <= self.letters.stacks.keys():
            if self._attempt.wait(EVERY_S) or not self._take():
                break
        parts = [f"{hang.message}\n"]
        for rank, info in sorted(self.letters.infos.items()):
            text = self.letters.stacks.get(rank, "it does not answer: stopped, or in code that lets no thread run\n")
            parts.append(f"=== rank {rank}: process {info.pid} on {info.host}, node {info.node_id}\n{text}")
        uri = filesystem.join(self._stacks_uri, f"step-{self._watch.step:08d}-{time.strftime('%H%M%S')}.txt")
        try:
            filesystem.write_bytes(uri, "\n".join(parts).encode())
            self._tell(f"{hang.message}; where each rank stood is in {uri}")
        except StorageError as error:
            self._tell(f"{hang.message}; where each rank stood could not be written: {error.message}")
