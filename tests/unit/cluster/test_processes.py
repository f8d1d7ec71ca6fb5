from __future__ import annotations

import os
import subprocess
import sys
import uuid

import psutil
import pytest

from raymlops.cluster.processes import MARK, ProcessRecord, belonging, end


@pytest.fixture
def started():
    """Start programs that say when they are ready; kill what a test left."""
    running = []

    def start(program, cluster_id):
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, MARK: cluster_id},
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        running.append(process)
        assert process.stdout.readline().strip() == b"ready"
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


_SLEEPS = "import time; print('ready', flush=True); time.sleep(60)"
_STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
)
_ORPHANS = """
import subprocess, sys, os
print("ready", flush=True)  # the child says its pid itself: while the kernel starts a program it shows no environment
program = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
os._exit(0)
"""
_PARENT = """
import os, subprocess, sys
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("ready", flush=True)
look = "import os; from raymlops.cluster.processes import MARK, belonging; "
look += "print(*(process.pid for process in belonging(os.environ[MARK])))"
subprocess.run([sys.executable, "-c", look]); other.kill()
"""


def test_a_recorded_process_is_ended_by_sigterm(started):
    """It leaves by itself, so that nothing is killed."""
    name = uuid.uuid4().hex
    process = started(_SLEEPS, name)
    assert end(name, [ProcessRecord.of("ray", process.pid)], grace_s=10) == []
    assert belonging(name) == []


def test_one_that_ignores_sigterm_is_killed(started):
    """After the grace it is told by SIGKILL, and named in the answer."""
    name = uuid.uuid4().hex
    process = started(_STUBBORN, name)
    assert end(name, [ProcessRecord.of("ray", process.pid)], grace_s=0.2) == [process.pid]


def test_an_orphan_is_found_by_its_mark(started):
    """Its parent has ended, so no process tree leads to it."""
    name = uuid.uuid4().hex
    process = started(_ORPHANS, name)
    orphan = int(process.stdout.readline())
    process.wait()
    assert [item.pid for item in belonging(name)] == [orphan]
    assert end(name, grace_s=0.2, signal_first=False) == [orphan]
    assert not psutil.pid_exists(orphan)


def test_a_reused_pid_is_left_alone(started):
    """The same pid with another start time is somebody else's process."""
    process = started(_SLEEPS, "another-cluster")
    stale = ProcessRecord("ray", process.pid, psutil.Process(process.pid).create_time() - 100)
    assert stale.find() is None
    assert end(uuid.uuid4().hex, [stale], grace_s=0.1) == []
    assert process.poll() is None


def test_parents_are_never_among_them(started):
    """A shell in a job that runs ``raymlops down`` carries the mark, and would be killed with what it waits for."""
    name = uuid.uuid4().hex
    process = started(_PARENT, name)
    found = process.stdout.readline().split()
    assert str(process.pid).encode() not in found
    assert len(found) == 1


def test_this_process_is_never_among_them(monkeypatch):
    """A job that runs ``raymlops down`` carries the mark itself."""
    assert belonging("x", [ProcessRecord.of("me", os.getpid())]) == []
