"""When silence is a hang, by hand-made clocks."""

from __future__ import annotations

import math
import subprocess
import sys
import threading

import pytest

from raymlops.training.supervision.hang_detector import COMPILED_START_S, START_S
from raymlops.tuning.trial.watchdog import PREPARE_S, Watchdog, innermost


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


class Calls:
    """Stands in for the interpreter's own watchdog."""

    def __init__(self):
        self.armed_s = None
        self.times = 0

    def __call__(self, after_s):
        self.armed_s = after_s
        self.times += after_s is not None


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def backstop():
    return Calls()


@pytest.fixture
def watchdog(clock, backstop):
    return Watchdog(hang_timeout_s=5.0, backstop=backstop, clock=clock)


def test_preparing_data_the_first_step_and_each_after_it_have_their_own_time(watchdog, clock):
    assert watchdog.left_s() == PREPARE_S
    clock.now_s += 50
    assert watchdog.left_s() == PREPARE_S - 50
    watchdog.start(0)
    assert watchdog.left_s() == START_S
    watchdog.alive(0)  # rows that are read before the first step
    assert watchdog.left_s() == START_S
    watchdog.alive(1)
    assert watchdog.left_s() == 5
    clock.now_s += 6
    assert watchdog.left_s() == -1


def test_a_first_step_that_compiles_has_longer(clock):
    watchdog = Watchdog(hang_timeout_s=5.0, compiles=True, clock=clock)
    watchdog.start(0)
    assert watchdog.left_s() == COMPILED_START_S


def test_one_that_goes_on_after_a_step_has_not_made_one_yet(watchdog):
    watchdog.start(120)
    watchdog.alive(120)
    assert watchdog.left_s() == START_S
    watchdog.alive(121)
    assert (watchdog.left_s(), watchdog.step) == (5, 121)


def test_who_waits_for_somebody_else_does_not_hang(watchdog, clock):
    watchdog.start(0)
    watchdog.alive(1)
    watchdog.pause()
    clock.now_s += 1000
    assert watchdog.left_s() == math.inf
    watchdog.resume()
    assert watchdog.left_s() == 5


def test_the_backstop_is_armed_anew_at_most_once_a_second_and_not_while_it_rests(watchdog, clock, backstop):
    watchdog.start(0)
    clock.now_s += 1
    watchdog.alive(1)
    assert backstop.armed_s == 15
    times = backstop.times
    clock.now_s += 0.9
    watchdog.alive(2)
    assert backstop.times == times
    clock.now_s += 0.1
    watchdog.alive(3)
    assert backstop.times == times + 1
    watchdog.pause()
    watchdog.defer_backstop()
    assert backstop.armed_s is None
    watchdog.resume()
    assert backstop.armed_s == 15


def test_whoever_looks_puts_it_off(watchdog, clock, backstop):
    times = backstop.times
    clock.now_s += 3
    watchdog.defer_backstop()
    assert backstop.times == times + 1


@pytest.mark.parametrize(
    ("begun", "step", "where"),
    [(False, 0, "while its data is prepared"), (True, 0, "before its first step"), (True, 7, "after step 7")],
)
def test_the_error_says_how_long_and_where(watchdog, clock, begun, step, where):
    if begun:
        watchdog.start(0)
        watchdog.alive(step)
    clock.now_s += 12
    error = watchdog.error(threading.get_ident())
    assert f"no progress for 12 s {where} (train.hang_timeout_s)" in error.message
    assert "test_the_error_says_how_long_and_where" in error.message


def test_a_thread_that_is_gone_stands_nowhere():
    assert innermost(None) == "no Python code"


def test_without_a_timeout_nothing_hangs_and_nothing_is_armed(clock, backstop):
    watchdog = Watchdog(backstop=backstop, clock=clock)
    watchdog.start(0)
    watchdog.alive(1)
    clock.now_s += 1e9
    assert (watchdog.left_s(), backstop.times) == (math.inf, 0)


def test_a_process_whose_training_lets_no_python_run_ends_itself():
    """A call into C that keeps the interpreter's lock: neither the training's thread nor anyone else's runs."""
    code = """
import ctypes
from raymlops.tuning.trial.watchdog import Watchdog, exit_process
watchdog = Watchdog(hang_timeout_s=0.01, backstop=exit_process)
watchdog.start(0)
watchdog.alive(1)
watchdog._armed_s = float("-inf")
watchdog.alive(2)
ctypes.PyDLL(None).sleep(600)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
