"""The box between ranks and driver holds what is said until the driver looks, and nothing of a former attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.records import Artifact
from raymlops.training.events import Event
from raymlops.training.supervision import messages
from raymlops.training.supervision.failure_policy import Raised
from raymlops.training.supervision.messages import Heartbeat, Info, Mailbox, Orders

if TYPE_CHECKING:
    import pytest


class Clock:
    """Seconds that a test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_one_call_brings_everything() -> None:
    """Events once; beats with how long ago they came; who the ranks are, what they raised and where they stand."""
    clock = Clock()
    box = Mailbox(clock=clock)
    box.begin(1)
    box.put(Event("step", step=1))
    box.heartbeat(Heartbeat(0, step=1), attempt=1, info=Info(pid=7, node_id="a"))
    box.failed(1, Raised("RuntimeError", "no"), attempt=1)
    box.stacks(0, "here", attempt=1)
    clock.now_s = 3.0
    inbox = box.take()
    assert [event.step for event in inbox.events] == [1]
    assert inbox.heartbeats[0].silent_s == 3.0
    assert inbox.infos[0].pid == 7
    assert inbox.raised[1].message == "no"
    assert inbox.stacks == {0: "here"}
    assert box.take().events == []
    assert box.take().heartbeats.keys() == {0}


def test_orders_come_with_the_answer_to_a_beat() -> None:
    """Each rank hears them with its next beat, until the next attempt begins without any."""
    box = Mailbox()
    box.begin(1)
    assert box.heartbeat(Heartbeat(0), attempt=1) == Orders()
    box.order("drained")
    box.dump()
    assert box.heartbeat(Heartbeat(0), attempt=1) == Orders("drained", dump=1)
    box.begin(2)
    assert box.heartbeat(Heartbeat(0), attempt=2) == Orders()


def test_a_new_mailbox_knows_its_attempt() -> None:
    """A rank may be sooner than the driver's next call: calls of two processes have no order."""
    box = Mailbox(3)
    assert box.heartbeat(Heartbeat(0), attempt=3) == Orders()


def test_a_former_attempt_is_not_heard() -> None:
    """Its ranks learn that nobody waits for them; what they say is dropped, but for events, which are facts."""
    box = Mailbox()
    box.begin(2)
    assert box.heartbeat(Heartbeat(0, step=9), attempt=1) is None
    box.failed(0, Raised("RuntimeError", "late"), attempt=1)
    box.stacks(0, "late", attempt=1)
    box.put(Event("step", step=9))
    inbox = box.take()
    assert (inbox.heartbeats, inbox.raised, inbox.stacks) == ({}, {}, {})
    assert len(inbox.events) == 1


def test_artifacts_that_the_driver_does_not_take_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound each becomes a notice; once the driver has taken them, there is room again."""
    monkeypatch.setattr(messages, "MAX_ARTIFACT_BYTES", 5)
    mailbox = Mailbox()
    for step in range(3):
        mailbox.put(Event("artifact", artifact=Artifact("image", "a", step, b"123", 1)))
    kinds = [event.kind for event in mailbox.take().events]
    assert kinds == ["artifact", "message", "message"]
    mailbox.put(Event("artifact", artifact=Artifact("image", "a", 3, b"123", 1)))
    assert [event.kind for event in mailbox.take().events] == ["artifact"]
