"""Events reach whoever wants them while a block runs; nothing that goes wrong with them is passed over."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from raymlops.errors import TrainingError
from raymlops.training.drain import Drain
from raymlops.training.progress import Event


def events(*steps: int) -> list[Event]:
    return [Event("step", step=step) for step in steps]


class Source:
    """Gives one answer a call, then nothing; an exception among the answers is raised."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.empty = threading.Event()

    def __call__(self) -> list[Event]:
        if not self._answers:
            self.empty.set()
            return []
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def drain(source: Source, emit: Any) -> Drain:
    return Drain(source, emit, every_s=0.001)


def test_events_are_passed_on_in_order() -> None:
    """However many come with one answer."""
    seen: list[int] = []
    source = Source(events(1, 2), [], events(3))
    with drain(source, lambda event: seen.append(event.step)) as running:
        assert source.empty.wait(10)
    assert seen == [1, 2, 3]
    assert running.error is None


def test_what_came_during_the_block_is_passed_on_after_it() -> None:
    """A block that ends at once leaves one answer to be taken."""
    seen: list[int] = []
    with drain(Source(events(1)), lambda event: seen.append(event.step)):
        pass
    assert seen == [1]


def test_a_failing_receiver_gets_the_rest_and_its_error_is_raised_at_the_end() -> None:
    """A display that breaks at the first event costs neither the later ones nor is it passed over."""
    seen: list[int] = []
    source = Source(events(1, 2), events(3))

    def emit(event: Event) -> None:
        seen.append(event.step)
        if event.step < 3:
            msg = f"display {event.step}"
            raise ValueError(msg)

    with pytest.raises(ValueError, match="display 1"), drain(source, emit):
        assert source.empty.wait(10)
    assert seen == [1, 2, 3]


def test_the_error_of_the_block_comes_first() -> None:
    """What happened to the events is a note on it."""

    def fail() -> None:
        with drain(Source(RuntimeError("gone")), lambda _event: None) as running:
            running._thread.join(10)
            raise KeyError

    with pytest.raises(KeyError) as raised:
        fail()
    assert "gone" in raised.value.__notes__[0]


def test_a_mailbox_that_is_gone_is_said() -> None:
    """A block that ends well does not hide that its metrics are lost."""
    with pytest.raises(TrainingError, match=r"lost events.*gone"), drain(Source(RuntimeError("gone")), print):
        pass


def test_a_late_answer_is_waited_for() -> None:
    """Two timeouts, then the answer to the question from before, then the last events."""
    seen: list[int] = []
    with drain(Source(TimeoutError(), TimeoutError(), events(1), events(2)), lambda event: seen.append(event.step)):
        pass
    assert seen == [1, 2]
    with pytest.raises(TrainingError, match="last events"), drain(Source(*[TimeoutError()] * 1000), print) as running:
        pass
    assert running.error is not None
