"""What is said of who holds a lock."""

from __future__ import annotations

import os
import signal
import subprocess

from raymlops.state.engine import this_user
from raymlops.state.locks import what_to_do


def test_a_holder_that_is_stopped_is_told_from_one_that_is_slow():
    """Of a process on another machine nobody here knows it."""
    process = subprocess.Popen(["sleep", "60"])
    holder = f"{this_user()} (process {process.pid}: reconciling) since 2026-01-01 00:00:00 UTC"
    try:
        assert what_to_do(holder).startswith("It runs, and is only slow")
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        assert what_to_do(holder).startswith(f"It is stopped (kill -CONT {process.pid})")
    finally:
        process.kill()
        process.wait()
    for unknown in (holder, f"me@elsewhere (process {os.getpid()}: reconciling)", "another process"):
        assert what_to_do(unknown).startswith("It may be slow. If it is stopped")
