"""What the driver does while an attempt runs, with a worker group and a mailbox that fail on request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from supervised import Recorder

from raymlops.data.prepare import prepare
from raymlops.training.events import Event
from raymlops.training.supervision import monitor as monitoring
from raymlops.training.supervision.hang_detector import HangDetector
from raymlops.training.supervision.messages import Heartbeat, Inbox, Info
from raymlops.training.supervision.monitor import Monitor
from raymlops.training.supervision.notices import Notifier
from raymlops.training.supervision.request import RunRequest

if TYPE_CHECKING:
    from pathlib import Path


class Group:
    """A worker group that ends once it is killed, or after a number of polls."""

    workers = 2

    def __init__(self, polls: int) -> None:
        self.left, self.kills = polls, 0

    def wait(self, _timeout_s: float) -> bool:
        self.left -= 1
        return self.left < 0

    def starting(self) -> bool:
        return False

    def kill(self) -> None:
        self.kills += 1
        self.left = min(self.left, 1)


class Channel:
    """A channel whose inboxes are given; after the last one the mailbox has died."""

    def __init__(self, *inboxes: Inbox) -> None:
        self.mailbox: Any = "mailbox"
        self.ordered: list[str] = []
        self._inboxes = list(inboxes)

    def take(self) -> Inbox | None:
        if not self._inboxes:
            self.mailbox = None
            return None
        return self._inboxes.pop(0)

    def dump(self) -> None:
        pass

    def order(self, reason: str) -> None:
        self.ordered.append(reason)


@pytest.fixture
def watch(tiny_project: Any, storage_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that monitors an attempt to its end, and what it found."""
    monkeypatch.setattr(monitoring, "_STACKS_S", 0.0)
    project = tiny_project(num_workers=2, hang_timeout_s=5.0)

    def run(group: Group, channel: Channel, stop: Any = lambda: "", *, waiting: str = "") -> Any:
        recorder = Recorder()
        request = RunRequest(project, prepare(project), f"{storage_path}/runs/r1", recorder, stop=stop)
        detector = HangDetector(resumed=0, hang_timeout_s=5.0)
        one = Monitor(group, detector, request, channel=channel, notify=Notifier(recorder), excluded=frozenset)
        one._waiting = waiting
        one.run()
        return SimpleNamespace(monitor=one, recorder=recorder)

    return run


@pytest.fixture
def looked_at(tiny_project: Any, storage_path: Path) -> Any:
    """Return a function that makes a monitor of two workers whose cluster is looked at by hand, and what it says."""
    project = tiny_project(num_workers=2, hang_timeout_s=5.0)

    def make(inbox: Inbox, *, waiting: str = "") -> Any:
        recorder, group, asked = Recorder(), Group(polls=9), []

        def look(*, workers: list[str]) -> str:
            asked.append(workers)
            return waiting

        room = SimpleNamespace(waiting=look)
        request = RunRequest(project, prepare(project), f"{storage_path}/runs/r1", recorder, room=room)
        detector = HangDetector(resumed=0, hang_timeout_s=5.0)
        one = Monitor(group, detector, request, channel=Channel(), notify=Notifier(recorder), excluded=frozenset)
        one.inbox = inbox
        return SimpleNamespace(monitor=one, recorder=recorder, group=group, asked=asked)

    return make


def beats(step: int, *, silent_s: float = 0.0, events: Any = ()) -> Inbox:
    infos = {rank: Info(rank + 7, "abc", "host") for rank in (0, 1)}
    heartbeats = {0: Heartbeat(0, step=step), 1: Heartbeat(1, step=step, silent_s=silent_s)}
    return Inbox(list(events), heartbeats=heartbeats, infos=infos)


def test_a_lost_mailbox_ends_the_attempt(watch: Any) -> None:
    """Its workers are killed, and the events that had arrived are kept."""
    group = Group(polls=9)
    seen = watch(group, Channel(beats(1, events=[Event("step", step=1)])))
    assert (seen.monitor.failure.kind, seen.monitor.failure.error_type) == ("mailbox_died", "MailboxDiedError")
    assert group.kills >= 1
    assert [event.step for event in seen.recorder.events if event.kind == "step"] == [1]


def test_a_rank_that_hangs_is_named_with_its_node(watch: Any, storage_path: Path) -> None:
    """The stacks go to the run's folder, and the workers are killed."""
    group = Group(polls=2)
    seen = watch(group, Channel(*[beats(3, silent_s=9.0)] * 9))
    failure = seen.monitor.failure
    assert (failure.kind, failure.rank, failure.node_id, failure.step) == ("hang", 1, "abc", 3)
    assert group.kills >= 1
    (stacks,) = (storage_path / "runs" / "r1" / "stacks").iterdir()
    assert "no heartbeat of rank 1 for 9 s" in stacks.read_text()
    assert "the stacks of all ranks are in" in seen.recorder.messages[0]


def test_a_reason_to_stop_is_ordered_once(watch: Any) -> None:
    """The workers write a last checkpoint and end by themselves."""
    channel = Channel(*[beats(step) for step in range(1, 9)])
    seen = watch(Group(polls=4), channel, stop=lambda: "interrupted")
    assert channel.ordered == ["interrupted"]
    assert seen.monitor.failure is None


WAITING = "Ray tasks or actors that request 1 CPU wait for room; the workers hold 2 CPU of 2 CPU"


def test_what_the_workers_leave_no_room_for_is_said_and_ends_no_run(looked_at: Any) -> None:
    """Once, and not at once: a cluster takes its time. It may be another job's, while this one's tasks run."""
    seen = looked_at(beats(0), waiting=WAITING)
    for now_s in (100.0, 107.0):
        seen.monitor._check_cluster(now_s)
    assert (seen.recorder.messages, seen.asked[0]) == ([], ["abc", "abc"])
    for now_s in range(108, 300, 2):
        seen.monitor._check_cluster(float(now_s))
    assert (seen.monitor.failure, seen.group.kills) == (None, 0)
    (message,) = seen.recorder.messages
    assert message.startswith(f"{WAITING}: if datasets(), which each worker calls, waits for them, return the URI")


def test_a_hang_before_the_first_step_says_what_the_workers_leave_no_room_for(watch: Any) -> None:
    """Later, no rank waits for it any more."""
    for step, said in ((0, f"(train.hang_timeout_s); {WAITING}"), (3, "(train.hang_timeout_s)")):
        seen = watch(Group(polls=2), Channel(*[beats(step, silent_s=9.0)] * 9), waiting=WAITING)
        assert seen.monitor.failure.message.endswith(said)


def test_nobody_asks_for_tasks_once_the_ranks_take_steps(looked_at: Any) -> None:
    """No rank waits for them any more."""
    seen = looked_at(beats(1), waiting=WAITING)
    seen.monitor._detector.observe(seen.monitor.inbox.heartbeats, now_s=1.0)
    for now_s in range(100, 120, 2):
        seen.monitor._check_cluster(float(now_s))
    assert (seen.asked, seen.recorder.messages) == ([], [])


def test_a_worker_that_does_not_start_ends_the_attempt(looked_at: Any) -> None:
    """It is stopped, or waits for one that is, before its first heartbeat: its libraries may take minutes to load."""
    inbox = beats(0)
    del inbox.infos[1]
    seen = looked_at(inbox)
    for now_s in (100.0, 700.0):
        seen.monitor._check_cluster(now_s)
    assert seen.monitor.failure is None
    seen.monitor._check_cluster(701.0)
    failure = seen.monitor.failure
    assert (failure.kind, failure.message) == ("hang", "1 of 2 workers have not started within 600 s")
    assert seen.group.kills == 1
