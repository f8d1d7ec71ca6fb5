"""Shares of time, and rates, with a clock that is told what time it is."""

from __future__ import annotations

import pytest

from raymlops.training.loop.timing import Stopwatch, Throughput


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_mark_gives_the_time_since_the_last_one_to_its_part() -> None:
    """1 s of data twice, 5 s of gradients, 3 s that nobody claims: 20, 50 and 30 % of 10 s."""
    clock = Clock()
    watch = Stopwatch(clock=clock)
    for part, seconds in (("data", 1.0), ("forward_backward", 5.0), ("data", 1.0)):
        clock.now_s += seconds
        watch.mark(part)
    clock.now_s += 3.0
    assert watch.take() == pytest.approx(
        {
            "time/data": 0.2,
            "time/forward_backward": 0.5,
            "time/optimizer": 0.0,
            "time/checkpoint": 0.0,
            "time/report": 0.0,
            "time/other": 0.3,
        }
    )


def test_taking_starts_anew() -> None:
    """What was taken counts no more; without any time there are no shares."""
    clock = Clock()
    watch = Stopwatch(clock=clock)
    clock.now_s += 4.0
    watch.mark("data")
    assert watch.take()["time/data"] == 1.0
    assert watch.take() == {}
    clock.now_s += 1.0
    watch.mark("optimizer")
    assert watch.take()["time/optimizer"] == 1.0


def test_a_part_that_is_none_is_refused() -> None:
    """A typing error would make a metric of its own."""
    with pytest.raises(KeyError):
        Stopwatch().mark("datas")


def test_rates_are_those_since_the_last_time() -> None:
    """200 rows and 6400 tokens in 4 s; of 2 devices with 1 TFLOPS, 10 GFLOP a row use 0.5e12 of 2e12."""
    clock = Clock()
    throughput = Throughput(workers=2, flops_per_row=1e10, peak_tflops=1.0, clock=clock)
    clock.now_s += 4.0
    assert throughput.of(rows=200, tokens=6400) == {
        "throughput/rows_per_s": 50.0,
        "throughput/tokens_per_s": 1600.0,
        "throughput/mfu": 0.25,
    }
    clock.now_s += 1.0
    assert throughput.of(rows=0) == {}


def test_what_is_not_known_is_left_out() -> None:
    """No tokens, no peak: rows alone."""
    clock = Clock()
    throughput = Throughput(workers=0, flops_per_row=1e10, clock=clock)
    clock.now_s += 2.0
    assert throughput.of(rows=10) == {"throughput/rows_per_s": 5.0}
