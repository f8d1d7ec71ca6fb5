from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import threading

import pytest

from raymlops.predictions.served import RequestRecord
from raymlops.serving.telemetry.sink_queue import Recorder


def served(number: int = 0) -> RequestRecord:
    return RequestRecord(
        request_id=f"r{number}",
        ts=1_700_000_000.0 + number,
        version=7,
        route="champion",
        protocol="native",
        status=200,
        code="",
        rows=1,
        body_bytes=20,
        seconds=0.002,
        model_seconds=0.001,
    )


class Kept:
    """A sink that remembers; may be held up and may fail."""

    def __init__(self, fails=False) -> None:
        self.ids: list[str] = []
        self.sizes: list[int] = []
        self.closed = 0
        self.beat = threading.Event()
        self.seen = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.fails = fails

    def take(self, batch) -> None:
        self.seen.set()
        self.gate.wait(10)
        self.beat.set()
        if self.fails:
            raise ValueError("no room")
        self.ids += [item.request_id for item in batch]
        self.sizes.append(len(batch))

    def close(self) -> None:
        self.closed += 1


def recorder(*sinks, period_s=60.0, max_pending=1000, **more) -> Recorder:
    return Recorder(sinks, period_s=period_s, max_pending=max_pending, name="test", **more)


def test_everything_is_kept_in_order_at_close():
    """What was added before close reaches every sink once, in handfuls, and each is closed once."""
    first, second = Kept(), Kept()
    one = recorder(first, second, chunk=3)
    for number in range(7):
        one.add(served(number))
    one.close()
    one.close()
    assert first.ids == second.ids == [f"r{number}" for number in range(7)]
    assert first.sizes == [3, 3, 1]
    assert (first.closed, second.closed) == (1, 1)


def test_sinks_are_called_every_period_also_without_requests():
    """A sink that writes by time needs no clock of its own."""
    sink = Kept()
    one = recorder(sink, period_s=0.001)
    assert sink.beat.wait(10)
    one.close()
    assert sink.ids == []


def test_the_newest_are_dropped_and_counted_when_too_many_wait():
    """Of seven with room for five, the last two are lost; after close nothing is taken."""
    sink = Kept()
    one = recorder(sink, max_pending=5)
    for number in range(7):
        one.add(served(number))
    assert (one.dropped, len(one._pending)) == (2, 5)
    one.close()
    one.add(served(8))
    assert sink.ids == ["r0", "r1", "r2", "r3", "r4"]
    assert (one.dropped, len(one._pending)) == (3, 0)


def test_a_failing_sink_harms_no_other_and_is_logged_once_a_minute(caplog):
    """Three failures within a minute are one line with its traceback, all are counted, the other sink has them all."""
    now = [0.0]
    bad, good = Kept(fails=True), Kept()
    one = recorder(bad, good, chunk=1, clock=lambda: now[0])
    with caplog.at_level(logging.ERROR, logger="ray.serve.raymlops"):
        for number in range(3):
            one.add(served(number))
        one.close()
    assert good.ids == ["r0", "r1", "r2"]
    assert one.errors == 3
    lines = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [line.getMessage() for line in lines] == [
        "Kept failed, which affects no request; 1 failures of sinks since the last line"
    ]
    assert lines[0].exc_info


def test_closing_is_bounded_when_a_sink_hangs(caplog):
    """Close returns and says how many requests may be lost."""
    sink = Kept()
    sink.gate.clear()
    one = recorder(sink, period_s=0.001)
    assert sink.seen.wait(10)
    one.add(served())
    with caplog.at_level(logging.WARNING, logger="ray.serve.raymlops"):
        one.close(timeout_s=0.01)
    assert "recorder-test did not end within 0.01 s; 1 requests of it may be lost" in caplog.text
    sink.gate.set()
    one._thread.join(10)
    assert sink.ids == ["r0"]


def test_closing_in_its_own_thread_does_not_hang():
    """Where a replica is collected while a sink is at work, the thread ends and the sinks are closed."""
    box: list[Recorder] = []

    class Last(Kept):
        def take(self, batch) -> None:
            if box:
                box.pop().close()

    sink = Last()
    one = recorder(sink, period_s=0.001)
    box.append(one)
    one._thread.join(10)
    assert not one._thread.is_alive()
    assert sink.closed == 1


@pytest.mark.parametrize("ending", ["", "del one", "raise SystemExit(0)"])
def test_nothing_is_lost_at_the_end_of_the_interpreter(tmp_path, ending):
    """A process that ends without closing has written everything."""
    program = f"""
        from raymlops.serving.telemetry.sink_queue import Recorder

        class File:
            def take(self, batch):
                with open({str(tmp_path / "kept")!r}, "a") as file:
                    file.writelines(batch)
            def close(self):
                self.take(["closed"])

        one = Recorder([File()], period_s=60, max_pending=10, name="x")
        one.add("a")
        one.add("b")
        {ending}
    """
    subprocess.run([sys.executable, "-W", "error", "-c", textwrap.dedent(program)], check=True, timeout=60)
    assert (tmp_path / "kept").read_text() == "abclosed"


def test_a_forked_child_writes_nothing_and_ends(tmp_path):
    """Only the parent has the thread: what was queued is kept once."""
    program = f"""
        import os, sys, warnings
        from raymlops.serving.telemetry.sink_queue import Recorder

        class File:
            def take(self, batch):
                with open({str(tmp_path / "kept")!r}, "a") as file:
                    file.writelines(batch)
            def close(self):
                pass

        one = Recorder([File()], period_s=60, max_pending=1, name="x")
        one.add("a")
        child = os.fork()
        if not child:
            one.add("b")
            one.close()
            sys.exit(0 if one.dropped == 1 else 3)
        _, status = os.waitpid(child, 0)
        one.close()
        sys.exit(os.waitstatus_to_exitcode(status))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)
    assert (tmp_path / "kept").read_text() == "a"
