"""Displays: the same events in a log, in a terminal and in a notebook."""

from __future__ import annotations

import errno
import io
from dataclasses import replace
from typing import Any

import IPython.display
import pytest
from rich.console import Console

from raymlops.display import (
    Display,
    LogDisplay,
    NotebookDisplay,
    Steps,
    TerminalDisplay,
    Throttle,
    display,
    duration,
    file_size,
    number_of,
    utc_time,
)
from raymlops.training.events import Event
from raymlops.tuning.reporting.progress import SweepEvent

STEP = Event("step", epoch=2, epochs=5, step=50, steps=200, metrics={"train/loss": 0.47}, elapsed_s=30.0)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(("isatty", "expected"), [(True, TerminalDisplay), (False, LogDisplay)])
def test_the_choice_of_a_display(isatty: bool, expected: type[Display]) -> None:
    """Job logs and pipes are no terminals."""
    stream = io.StringIO()
    stream.isatty = lambda: isatty
    assert isinstance(display(stream), expected)


def test_a_log_has_one_line_in_ten_seconds() -> None:
    """An event each second for 25 s gives lines at 0, 10 and 20 s, and the end in any case."""
    stream, clock = io.StringIO(), Clock()
    with LogDisplay(stream, clock=clock) as show:
        for second in range(26):
            clock.now_s = float(second)
            show(replace(STEP, step=second))
        show(replace(STEP, kind="end"))
    lines = stream.getvalue().splitlines()
    assert [line.split()[2] for line in lines] == ["step=0/200", "step=10/200", "step=20/200", "step=50/200"]


def test_notices_are_logged_at_once() -> None:
    """A restart one second after a line is not held back, and holds back no line."""
    stream, clock = io.StringIO(), Clock()
    show = LogDisplay(stream, clock=clock)
    show(Event("message", message="starting 2 workers"))
    show(STEP)
    clock.now_s = 1.0
    show(replace(STEP, kind="restart", metrics={}, message="a worker died", workers=1))
    clock.now_s = 10.0
    show(STEP)
    kinds = [line.split()[0] for line in stream.getvalue().splitlines()]
    assert kinds == ["event=message", "event=step", "event=restart", "event=step"]
    assert 'workers=1 elapsed_s=30.0 msg="a worker died"' in stream.getvalue()


def test_a_log_line_has_metrics_that_fell_between() -> None:
    """An epoch's validation that came two seconds after a line is in the next one."""
    stream, clock = io.StringIO(), Clock()
    show = LogDisplay(stream, clock=clock)
    show(STEP)
    clock.now_s = 2.0
    show(replace(STEP, kind="epoch", metrics={"validation/auc": 0.71}))
    clock.now_s = 10.0
    show(STEP)
    assert "validation/auc" not in stream.getvalue().splitlines()[0]
    assert "validation/auc=0.71" in stream.getvalue().splitlines()[1]


def test_a_terminal_keeps_its_table_under_notices() -> None:
    """Notices are printed above as they were written; the latest event stays."""
    stream = io.StringIO()
    with TerminalDisplay(stream) as show:
        show(Event("message", message="starting 2 workers"))
        show(STEP)
        show(Event("restart", message="worker [1] died"))
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["starting 2 workers", "worker [1] died"]
    assert "epoch 2/5" in lines[-1]
    assert "50/200" in lines[-1]


def test_a_notebook_updates_one_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most twice a second; the last notice stays below the table, and the end is always shown."""
    outputs: list[str] = []

    class Handle:
        def update(self, renderable: Any) -> None:
            console = Console(width=100, file=io.StringIO(), record=True)
            console.print(renderable)
            outputs.append(console.export_text())

    def show_first(renderable: Any, *, display_id: bool) -> Handle:
        assert display_id
        handle = Handle()
        handle.update(renderable)
        return handle

    monkeypatch.setattr(IPython.display, "display", show_first)
    clock = Clock()
    with NotebookDisplay(clock=clock) as show:
        show(Event("message", message="<b>starting</b> [1]"))
        show(replace(STEP, step=10))
        clock.now_s = 0.4
        show(replace(STEP, step=11))
        show(replace(STEP, kind="end", step=200))
    assert len(outputs) == 3
    assert "10/200" in outputs[1]
    assert "200/200" in outputs[2]
    assert all("<b>starting</b> [1]" in text for text in outputs)


def test_a_throttle_starts_open() -> None:
    """The first call passes, then one in every two seconds."""
    clock = Clock()
    throttle = Throttle(2.0, clock=clock)
    passed = []
    for now_s in (0.0, 1.9, 2.0, 3.0, 4.1):
        clock.now_s = now_s
        passed.append(throttle.due())
    assert passed == [True, False, True, False, True]


def test_steps_are_numbered_and_timed() -> None:
    """Each step prints its number, then its seconds and its outcome."""
    lines: list[str] = []
    ticks = iter([10.0, 12.5, 20.0, 20.0])
    steps = Steps(2, sink=lines.append, clock=lambda: next(ticks))
    with steps.step("sweep") as results:
        results.append("best 0.7")
    with steps.step("train"):
        pass
    assert lines == ["[1/2] sweep", "      2.5 s: best 0.7", "[2/2] train", "      0.0 s"]
    assert steps.seconds == {"sweep": 2.5, "train": 0.0}


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (123_456, "123.5 kB"), (2_500_000, "2.5 MB")],
)
def test_sizes_are_short(size: int, text: str) -> None:
    """One decimal, powers of ten."""
    assert file_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0:00"), (59.6, "1:00"), (3700, "1:01:40"), (90_000, "1 d 1 h"), (0, "0:00")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    """Minutes and seconds, with hours and days where there are any."""
    assert duration(seconds) == text


def test_times_are_in_utc() -> None:
    """As everything that is stored; what cannot be read is a question mark."""
    assert utc_time("2026-11-25T13:00:30+01:00") == "2026-11-25 12:00:30 UTC"
    assert utc_time(None) == "?"


class Gone(io.StringIO):
    """A terminal that was closed, or a pipe whose reader has ended, after so many writes."""

    def __init__(self, writes):
        super().__init__()
        self.left = writes

    def write(self, text):
        if self.left == 0:
            raise OSError(errno.EIO, "Input/output error")
        self.left -= 1
        return super().write(text)


@pytest.mark.parametrize("kind", [LogDisplay, TerminalDisplay])
def test_a_display_that_cannot_be_written_is_silent_and_ends_nothing(kind):
    stream = Gone(2)
    with kind(stream) as shown:
        for number in range(20):
            shown(SweepEvent("message", message=f"m{number}"))
    assert "m19" not in stream.getvalue()


def test_an_event_that_cannot_be_rendered_ends_nothing():
    class Broken(SweepEvent):
        def pairs(self):
            raise ZeroDivisionError

    stream = io.StringIO()
    with LogDisplay(stream) as shown:
        shown(SweepEvent("message", message="before"))
        shown(Broken("message", message="x"))
        shown(SweepEvent("message", message="after"))
    assert "before" in stream.getvalue()
    assert "after" not in stream.getvalue()


def test_a_count_agrees_with_its_noun() -> None:
    """One, several and none, also of an irregular plural."""
    assert [number_of(count, "study", "studies") for count in (0, 1, 2)] == ["0 studies", "1 study", "2 studies"]
    assert number_of(1000, "trial") == "1,000 trials"
