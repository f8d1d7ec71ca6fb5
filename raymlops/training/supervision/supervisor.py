"""A run on Ray workers, from its first attempt to its end, whatever dies in between.

Owns the order: recall the newest checkpoint, find room, run an attempt, and decide how to go on. All of it happens in
the driver's own thread, so that a signal ends it; what is decided is decided by the pure files beside this one.
"""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from raymlops.errors import TrainingError
from raymlops.storage import filesystem
from raymlops.storage.scratch import scratch
from raymlops.training.checkpoints.latest import recall
from raymlops.training.supervision.channel import Post
from raymlops.training.supervision.diagnosis import diagnose, never_started
from raymlops.training.supervision.failure_policy import decide
from raymlops.training.supervision.hang_detector import Watch
from raymlops.training.supervision.monitor import EVERY_S, LOOK_AROUND_EVERY_S, Oversight
from raymlops.training.supervision.notices import Teller, plural
from raymlops.training.supervision.scaling_policy import choose
from raymlops.training.supervision.worker import config_of, work
from raymlops.training.supervision.worker_group import Attempt, dead, draining, train_environment

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.data.prepare import Prepared
    from raymlops.errors import RaymlopsError
    from raymlops.project import Project
    from raymlops.training.checkpoints.latest import Recalled
    from raymlops.training.loop.context import Outcome
    from raymlops.training.runs.lookup import Place
    from raymlops.training.supervision.failure_policy import Failure
    from raymlops.training.supervision.notices import Writer
    from raymlops.training.supervision.scaling_policy import Room

_SETTLE_S = 3.0
"""How long the places of workers that have just ended may take to be free again."""


def fit(
    project: Project,
    prepared: Prepared,
    *,
    place: Place,
    unused_parameters: bool | None,
    writer: Writer,
    room: Room,
    stop: Callable[[], str],
) -> tuple[Outcome, str]:
    """Train on ``train.num_workers`` workers and return what was reached and the URI of the best checkpoint.

    Ray must be initialised. ``unused_parameters`` is None where the first worker tries the model, which this process
    could not (see ``preflight``). ``stop`` returns why to end after a last checkpoint, once there is a reason; it may
    raise KeyboardInterrupt, which ends everything at once. No worker is left behind, however this ends.

    Raises:
        RaymlopsError: the one that a worker raised, where the policy says stop.
        TrainingError: another failure that the policy does not try again, or not once more.
        InsufficientResourcesError: there is no room for the workers, or none any more.
        KeyboardInterrupt: ``stop`` had a reason; the newest checkpoint is where the run goes on.
    """
    config = config_of(project, prepared, checkpoints_uri=place.checkpoints_uri, unused_parameters=unused_parameters)
    tell = Teller(writer)
    try:
        with (
            # Train wants a place for files of its own; ours are elsewhere.
            scratch() as folder,
            train_environment(section=project.spec.train, wait_s=project.spec.cluster.wait_s),
            Post() as post,
        ):
            run = _Run(project, config, place=place, folder=str(folder), tell=tell, room=room, stop=stop, post=post)
            ended = run.to_the_end()
    except BaseException as error:
        tell.add_kept(error)
        raise
    tell.raise_kept()
    return ended


class _Run:
    """One run over its attempts."""

    def __init__(
        self,
        project: Project,
        config: dict[str, Any],
        *,
        place: Place,
        folder: str,
        tell: Teller,
        room: Room,
        stop: Callable[[], str],
        post: Post,
    ) -> None:
        self._section = project.spec.train
        self._wait_s = project.spec.cluster.wait_s
        self._config = config
        self._place = place
        self._folder = folder
        self._tell = tell
        self._room = room
        self._stop = stop
        self._post = post
        self._attempts = 0
        self._restarts = 0
        """Those since the newest checkpoint."""
        self._restarted_s: list[float] = []
        """When each was."""
        self._reason = ""
        """Why the next attempt follows the last one."""
        self._excluded: set[str] = set()
        """Nodes that the policy took out."""
        self._nodes: dict[int, str] = {}
        """Where the ranks of the last attempt were."""
        self._expected = 0
        """How many workers there should be room for, once those that have just ended are gone."""

    def to_the_end(self) -> tuple[Outcome, str]:
        """Run attempts until one finishes or the policy stops."""
        recalled = self._recall()
        if recalled.state is not None:
            self._reason = f"the run goes on after step {_step(recalled)}"
        while True:
            ended = self._attempt(self._find_room(), recalled)
            if isinstance(ended, tuple) and not ended[0].stopped:
                return ended
            before, recalled = recalled, self._recall()
            if _step(recalled) > _step(before):
                self._restarts = 0
            if isinstance(ended, _Failed):
                self._go_on_after(ended)
            elif ended[0].stopped == "interrupted":
                raise KeyboardInterrupt

    def _recall(self) -> Recalled:
        recalled = recall(self._place.checkpoints_uri, metric=self._section.metric, mode=self._section.mode)
        for text in recalled.said():
            self._tell(text)
        if recalled.state is not None:
            self._tell.catch_up(recalled.state.points)
        return recalled

    def _find_room(self) -> int:
        """Return how many workers to start; wait for room as long as the configuration says."""
        fewest = self._section.workers[0]
        began_s = time.monotonic()
        asked_s: float | None = None
        while True:
            if self._stop():
                raise KeyboardInterrupt
            workers = choose(self._section.workers, room=self._count())
            now_s = time.monotonic()
            settled = now_s - began_s >= _SETTLE_S
            if workers is not None and (workers >= self._expected or settled):
                return workers
            if workers is None and settled:
                if asked_s is None:
                    self._tell(f"waiting for room for {plural(fewest)}, at most {self._wait_s:g} s")
                if asked_s is None or now_s - asked_s >= LOOK_AROUND_EVERY_S:
                    asked_s = now_s
                    if self._room.may_grow(fewest):
                        return fewest  # an autoscaler adds nodes for workers that are asked for
                if now_s - began_s >= self._wait_s:
                    raise self._room.error(fewest, waited_s=now_s - began_s)
            time.sleep(EVERY_S)

    def _count(self) -> float:
        """Return how many workers there is room for; none where the cluster does not answer, which it may next time."""
        with suppress(Exception):
            return self._room.count(without=self._without())
        return 0

    def _attempt(self, workers: int, recalled: Recalled) -> tuple[Outcome, str] | _Failed:
        self._attempts += 1
        name = f"attempt-{self._attempts}-{secrets.token_hex(3)}"
        self._post.begin(self._attempts)
        config = {
            **self._config,
            "mailbox": self._post.mailbox,
            "attempt": self._attempts,
            "token": name.rpartition("-")[2],
            "resume": recalled.uri,
            "kept": recalled.kept,
        }
        watch = Watch(
            resumed=_step(recalled),
            hang_timeout_s=self._section.hang_timeout_s,
            compiles=self._section.compile,
        )
        self._tell.starts(workers, step=_step(recalled), reason=self._reason)
        with Attempt(
            work,
            config,
            name=name,
            number=self._attempts,
            workers=workers,
            section=self._section,
            folder=self._folder,
            mailbox=self._post.mailbox,
            without=self._without(),
        ) as attempt:
            oversight = Oversight(
                attempt,
                watch,
                section=self._section,
                post=self._post,
                tell=self._tell,
                room=self._room,
                stop=self._stop,
                without=self._without,
                stacks_uri=filesystem.join(self._place.runs_uri, self._place.run_id, "stacks"),
            )
            oversight.run()
        self._tell.ended(watch)
        self._nodes = {rank: info.node_id for rank, info in oversight.letters.infos.items()}
        self._reason, self._expected = oversight.reason, self._places_after(oversight)
        if oversight.failure is not None:
            return _Failed(oversight.failure)
        if attempt.error is None:
            ended: tuple[Outcome, str] = attempt.value
            return ended
        if never_started(attempt.error):
            raise self._room.error(workers, waited_s=self._wait_s)
        return _Failed(*diagnose(attempt.error, letters=oversight.letters, step=watch.step))

    def _go_on_after(self, ended: _Failed) -> None:
        """Do what the policy says: raise, or wait the time that it gives and leave out the node that it names.

        Raises:
            RaymlopsError: it says stop.
        """
        failure, section = ended.failure, self._section
        decision = decide(
            failure,
            rules=section.on_failure,
            max_restarts=section.max_restarts,
            restarts_without_progress=self._restarts,
            restart_ages_s=[time.monotonic() - at_s for at_s in self._restarted_s],
        )
        if decision.action == "stop":
            raise ended.own or TrainingError(
                f"the training failed: {failure}\n  {decision.reason}",
                hint="The whole trace is in the worker's log: in logs/train of Ray's session folder, or in the Ray "
                "dashboard.",
            )
        self._restarts += 1
        self._restarted_s.append(time.monotonic())
        self._reason = str(failure)
        self._tell(f"{failure}; {decision.reason}")
        if decision.action == "exclude_node":
            self._excluded.add(failure.node_id)
        end_s = time.monotonic() + decision.delay_s
        while time.monotonic() < end_s and not self._stop():
            time.sleep(EVERY_S)

    def _without(self) -> frozenset[str]:
        """Return the nodes on which no worker is to start."""
        return draining() | self._excluded | dead(set(self._nodes.values()))

    def _places_after(self, oversight: Oversight) -> int:
        """Return how many workers there should be room for next: as many as were told to make way for, or are left."""
        if oversight.to != len(self._nodes):
            return oversight.to
        without = self._without()
        return sum(node_id not in without for node_id in self._nodes.values())


class _Failed:
    """An attempt's bad end; ``own`` is the exception of ours behind it, where there is one."""

    def __init__(self, failure: Failure, own: RaymlopsError | None = None) -> None:
        self.failure = failure
        self.own = own


def _step(recalled: Recalled) -> int:
    return 0 if recalled.state is None else recalled.state.step
