"""A heartbeat says how far its rank is, brings orders, shows stacks, and never disturbs the training."""

from __future__ import annotations

import queue
from typing import Any

from raymlops.training.supervision.heartbeat import EVERY_S, HeartbeatThread, interval_s
from raymlops.training.supervision.messages import Heartbeat, Orders


class Listener:
    """Answers each beat with the next answer; the last one for ever. An exception among them is raised."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.beats: queue.Queue[Heartbeat] = queue.Queue()
        self.shown: queue.Queue[str] = queue.Queue()

    def heartbeat(self, beat: Heartbeat) -> Orders | None:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        self.beats.put(beat)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stacks(self, text: str) -> None:
        self.shown.put(text)


def pulse(listener: Listener) -> HeartbeatThread:
    return HeartbeatThread(3, listener, every_s=0.001)


def test_a_heartbeat_says_how_far_the_loop_is() -> None:
    """The last heartbeat says that the loop has ended."""
    listener = Listener(Orders())
    running = pulse(listener)
    running.alive(10)
    running.alive(10)
    running.start()
    first = listener.beats.get(timeout=5)
    assert (first.rank, first.step, first.done) == (3, 10, False)
    running.end()
    last = first
    while not listener.beats.empty():
        last = listener.beats.get()
    assert last.done
    assert not running._thread.is_alive()


def test_a_sign_of_life_is_no_step() -> None:
    """Whoever waits for an upload moves, at the step where it is."""
    listener = Listener(Orders())
    running = pulse(listener)
    running.alive(10)
    running.tick()
    running.start()
    first = listener.beats.get(timeout=5)
    assert (first.step, first.step_age_s > first.tick_age_s) == (10, True)
    running.end()


def test_orders_reach_the_loop() -> None:
    """The reason to end is asked for at each step."""
    listener = Listener(Orders("drained"))
    running = pulse(listener)
    assert running.orders() == ""
    running.start()
    listener.beats.get(timeout=5)
    listener.beats.get(timeout=5)
    assert running.orders() == "drained"
    running.end()


def test_stacks_are_shown_once_for_each_dump() -> None:
    """They name the threads and the lines that they are at."""
    listener = Listener(Orders(dump=1))
    running = pulse(listener)
    running.start()
    text = listener.shown.get(timeout=5)
    listener.beats.get(timeout=5)
    listener.beats.get(timeout=5)
    running.end()
    assert "thread MainThread" in text
    assert "test_stacks_are_shown_once_for_each_dump" in text
    assert listener.shown.empty()


def test_nobody_to_hear_it_ends_the_pulse_quietly() -> None:
    """A box that is gone, or one that waits for another attempt."""
    for answer in (RuntimeError("the actor died"), None):
        listener = Listener(answer)
        running = pulse(listener)
        running.start()
        running._thread.join(5)
        assert not running._thread.is_alive()
        assert listener.beats.qsize() == 1
        running.alive(1)
        assert running.orders() == ""
        running.end()


def test_a_late_answer_is_no_end() -> None:
    """A busy cluster answers late."""
    listener = Listener(TimeoutError(), Orders("interrupted"))
    running = pulse(listener)
    running.start()
    for _ in range(3):
        listener.beats.get(timeout=5)
    assert running.orders() == "interrupted"
    running.end()


def test_many_ranks_beat_more_slowly() -> None:
    """4,000 ranks at 400 beats a second: each every ten seconds."""
    assert interval_s(2) == EVERY_S
    assert interval_s(4000) == 10.0
