"""Supervise a run on Ray workers, from its first attempt to its end, whatever dies in between.

Owns the order: find the newest checkpoint, wait for room, run an attempt, apply the failure policy. All of it happens
in the driver's own thread, so that a signal ends it; decisions are made by the pure files beside this one.
"""

from __future__ import annotations

import secrets
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from raymlops.errors import TrainingError
from raymlops.signals import undisturbed
from raymlops.storage.scratch import scratch
from raymlops.training.checkpoints.latest import recall
from raymlops.training.supervision.channel import DriverChannel
from raymlops.training.supervision.diagnosis import diagnose, never_started
from raymlops.training.supervision.failure_policy import Failure, decide
from raymlops.training.supervision.hang_detector import HangDetector
from raymlops.training.supervision.monitor import CLUSTER_EVERY_S, EVERY_S, Monitor
from raymlops.training.supervision.notices import Notifier, plural
from raymlops.training.supervision.processes import WorkerProcesses
from raymlops.training.supervision.scaling_policy import choose
from raymlops.training.supervision.worker import payload_of
from raymlops.training.supervision.worker_group import WorkerGroup, dead, draining, train_environment

if TYPE_CHECKING:
    from raymlops.training.checkpoints.latest import Recalled
    from raymlops.training.loop.outcome import Outcome
    from raymlops.training.supervision.request import RunRequest

_SETTLE_S = 3.0
"""Time for the resources of workers that have just exited to be free again."""
_LOOK_S = 0.02
"""How often they are counted meanwhile."""


def fit(request: RunRequest) -> tuple[Outcome, str]:
    """Train on ``train.num_workers`` workers and return the outcome and the URI of the best checkpoint.

    Ray must be initialised. No worker is left running, however this ends.

    Raises:
        RaymlopsError: the one that a worker raised, where the policy is to stop.
        TrainingError: another failure that the policy does not retry, or not once more.
        InsufficientResourcesError: there is no room for the workers.
        KeyboardInterrupt: ``request.stop`` had a reason; the run can be resumed from its newest checkpoint.
    """
    with (
        # Ray Train needs a folder for files of its own; ours are elsewhere.
        scratch() as folder,
        train_environment(section=request.section, wait_s=request.project.spec.cluster.wait_s),
        DriverChannel() as channel,
    ):
        return _Supervisor(request, folder=str(folder), channel=channel).run()


class _Supervisor:
    """Runs the attempts of one run."""

    def __init__(self, request: RunRequest, *, folder: str, channel: DriverChannel) -> None:
        self._request = request
        self._section = request.section
        self._payload = payload_of(request)
        self._started = request.started
        self._folder = folder
        self._notify = Notifier(request.writer)
        self._channel = channel
        self._attempts = 0
        self._restarts = 0
        """Those since the newest checkpoint."""
        self._restarted_s: list[float] = []
        self._placeless_s: float | None = None
        """Since when others have taken the places of each attempt before its workers started."""
        self._reason = ""
        """Why the next attempt follows the last one."""
        self._excluded: set[str] = set()
        """Nodes excluded by the policy."""
        self._failed_nodes: set[str] = set()
        """Nodes whose hardware failed."""
        self._nodes: dict[int, str] = {}
        """The nodes of the last attempt's ranks."""
        self._expected = 0
        """The number of workers that there should be room for, once those of the last attempt have exited."""

    def run(self) -> tuple[Outcome, str]:
        """Run attempts until one finishes or the policy is to stop."""
        newest = self._newest_checkpoint()
        if newest.state is not None:
            self._reason = f"the run is resumed after step {_step(newest)}"
        while True:
            ended = self._attempt(newest)
            if isinstance(ended, tuple) and not ended[0].stopped:
                return ended
            before, newest = newest, self._newest_checkpoint()
            if _step(newest) > _step(before):
                self._restarts = 0
            if isinstance(ended, Failure) and _finished(newest) and not _finished(before):
                # After the last checkpoint the test split is evaluated, which the next attempt leaves out.
                self._reason = f"{ended}; the training is finished"
            elif isinstance(ended, Failure) and ended.kind == "places_lost":
                self._wait_again(ended)
            elif isinstance(ended, Failure):
                self._handle(ended)
            elif ended[0].stopped == "interrupted":
                raise KeyboardInterrupt

    def _newest_checkpoint(self) -> Recalled:
        uri, section = self._request.checkpoints_uri, self._section
        newest = recall(uri, metric=section.metric, mode=section.mode, digests=False)
        for text in newest.warnings():
            self._notify(text)
        if newest.state is not None:
            self._request.catch_up(newest.state.points)
        return newest

    def _wait_for_room(self) -> int:
        """Return the number of workers to start; wait up to ``cluster.wait_s`` for room."""
        room, (fewest, _), wait_s = self._request.room, self._section.workers, self._request.project.spec.cluster.wait_s
        assert room is not None
        began_s = time.monotonic()
        asked_s: float | None = None
        while True:
            if self._request.stop():
                raise KeyboardInterrupt
            workers = choose(self._section.workers, room=self._request.count_room(excluded=self._without))
            now_s = time.monotonic()
            settled = now_s - began_s >= _SETTLE_S
            if workers is not None and (workers >= self._expected or settled):
                return workers
            if workers is None and settled:
                if asked_s is None:
                    self._notify(f"waiting up to {wait_s:g} s for room for {plural(fewest)}")
                if asked_s is None or now_s - asked_s >= CLUSTER_EVERY_S:
                    asked_s = now_s
                    if room.may_grow(fewest):
                        return fewest  # an autoscaler adds nodes for pending workers
                if now_s - began_s >= wait_s:
                    raise room.error(fewest, waited_s=now_s - began_s)
            time.sleep(EVERY_S if settled else _LOOK_S)

    def _wait_again(self, failure: Failure) -> None:
        """Let the next attempt wait for room once more: others were faster, which is no failure of the run.

        Raises:
            InsufficientResourcesError: others have been faster again and again for ``cluster.wait_s``.
        """
        assert self._request.room is not None
        now_s = time.monotonic()
        self._placeless_s = now_s if self._placeless_s is None else self._placeless_s
        waited_s = now_s - self._placeless_s
        if waited_s > self._request.project.spec.cluster.wait_s:
            raise self._request.room.error(self._section.workers[0], waited_s=waited_s)
        self._reason = str(failure)
        self._notify(f"{failure}; waiting for room again")

    def _attempt(self, newest: Recalled) -> tuple[Outcome, str] | Failure:
        """Run an attempt, the first one on the processes that were started ahead, and end its processes."""
        processes, self._started = self._started, None
        workers = self._wait_for_room() if processes is None else processes.workers
        with ExitStack() as held:
            with undisturbed():
                started = processes or WorkerProcesses(
                    self._section, workers=workers, without=self._without(), group=self._request.placement_group
                )
                held.enter_context(started)
            ended = self._run_attempt(started, newest)
            if started.placed:
                self._placeless_s = None
            return ended

    def _run_attempt(self, processes: WorkerProcesses, newest: Recalled) -> tuple[Outcome, str] | Failure:
        workers = processes.workers
        self._attempts += 1
        self._channel.begin(self._attempts)
        payload = {
            **self._payload,
            "mailbox": self._channel.mailbox,
            "attempt": self._attempts,
            "token": secrets.token_hex(3),
            "resume": newest.uri,
            "kept": newest.kept,
        }
        detector = HangDetector(
            resumed=_step(newest), hang_timeout_s=self._section.hang_timeout_s, compiles=self._section.compile
        )
        self._notify.starting(workers, step=_step(newest), reason=self._reason)
        group = WorkerGroup(payload, self._section, processes=processes, folder=self._folder)
        monitor = Monitor(
            group, detector, self._request, channel=self._channel, notify=self._notify, excluded=self._without
        )
        with group:
            monitor.run()
        self._notify.ended(detector)
        self._nodes = {rank: info.node_id for rank, info in monitor.inbox.infos.items()}
        self._reason, self._expected = monitor.reason, self._places_after(monitor)
        if monitor.failure is not None:
            return monitor.failure
        if group.error is None:
            ended: tuple[Outcome, str] = group.value
            return ended
        if never_started(group.error):
            assert self._request.room is not None
            raise self._request.room.error(workers, waited_s=self._request.project.spec.cluster.wait_s)
        return diagnose(group.error, inbox=monitor.inbox, step=detector.step)

    def _handle(self, failure: Failure) -> None:
        """Apply the failure policy: raise, or wait for its backoff and exclude the node that it names.

        Raises:
            RaymlopsError: the policy is to stop.
        """
        section = self._section
        decision = decide(
            failure,
            rules=section.on_failure,
            max_restarts=section.max_restarts,
            restarts_without_progress=self._restarts,
            restart_ages_s=[time.monotonic() - at_s for at_s in self._restarted_s],
            failed_nodes=self._failed_nodes,
        )
        if decision.action == "stop":
            raise failure.own or TrainingError(
                f"the training failed: {failure}\n  {decision.reason}",
                hint="The traceback is in the worker's log: in logs/train of Ray's session folder or in its dashboard.",
            )
        self._restarts += 1
        self._restarted_s.append(time.monotonic())
        self._reason = str(failure)
        self._notify(f"{failure}; {decision.reason}")
        if failure.of_hardware and failure.node_id:
            self._failed_nodes.add(failure.node_id)
        end_s = time.monotonic() + decision.delay_s
        while time.monotonic() < end_s and not self._request.stop():
            time.sleep(EVERY_S)
        if decision.action == "exclude_node":
            self._exclude(failure.node_id, if_room=decision.if_room)

    def _exclude(self, node_id: str, *, if_room: bool) -> None:
        """Start no worker on this node any more, or with ``if_room`` only where there is room on the others."""
        others, fewest = self._without() | {node_id}, self._section.workers[0]
        # Asked after the backoff, in which the last attempt's workers have exited.
        if if_room and self._request.count_room(excluded=lambda: others) < fewest:
            self._notify(f"node {node_id[:12]} is not excluded: the others have no room for {plural(fewest)}")
            return
        self._notify(f"node {node_id[:12]} is excluded")
        self._excluded.add(node_id)

    def _without(self) -> frozenset[str]:
        """Return the nodes on which no worker may start."""
        return draining() | self._excluded | dead(set(self._nodes.values()))

    def _places_after(self, monitor: Monitor) -> int:
        """Return how many workers there should be room for next: as many as a resize is to, or as are left."""
        if monitor.to != len(self._nodes):
            return monitor.to
        without = self._without()
        return sum(node_id not in without for node_id in self._nodes.values())


def _finished(recalled: Recalled) -> bool:
    return recalled.state is not None and recalled.state.finished


def _step(recalled: Recalled) -> int:
    return 0 if recalled.state is None else recalled.state.step
