"""Processes that we started: how they are recognised later, and how they are ended with all their children.

Owns the rule that nothing else is ever ended: a process is ours when its recorded pid still has the recorded
start time, or when its environment carries the id that we gave to the cluster it belongs to.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from raymlops.errors import ClusterError
from raymlops.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterable

MARK = "RAYMLOPS_CLUSTER_ID"
"""Variable in the environment of every process of a cluster that we started; children inherit it."""


@dataclass(frozen=True)
class ProcessRecord(Record):
    """One started process. ``created`` (seconds since the epoch) tells it from a later one with the same pid."""

    name: str
    pid: int
    created: float

    @classmethod
    def of(cls, name: str, pid: int) -> ProcessRecord:
        """Record a process that was just started."""
        return cls(name, pid, psutil.Process(pid).create_time())

    def find(self) -> psutil.Process | None:
        """Return the process, or None when it has ended, also where its pid now belongs to another."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < 0.01
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


def session_runs_here(name: str | None) -> bool:
    """Return whether a process of a Ray session is on this machine; True for a session without a name.

    Ray's head and each node have the session among their arguments.
    """
    if name is None:
        return True
    argument = f"--session-name={name}"
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if argument in process.cmdline():
                return True
    return False


def belonging(cluster_id: str, records: Iterable[ProcessRecord] = ()) -> list[psutil.Process]:
    """Return every living process of a cluster, but not this process and its parents.

    The mark finds what the process tree no longer shows: workers of a raylet that was killed, drivers of jobs.
    """
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found: dict[int, psutil.Process] = {}
    for record in records:
        if process := record.find():
            found[process.pid] = process
            with suppress(psutil.Error):
                found.update({child.pid: child for child in process.children(recursive=True)})
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == cluster_id:
                found[process.pid] = process
    return [process for pid, process in found.items() if pid not in spared and _alive(process)]


def end(
    cluster_id: str, records: Iterable[ProcessRecord] = (), *, grace_s: float = 15.0, signal_first: bool = True
) -> list[int]:
    """End every process of a cluster: the recorded ones by SIGTERM, and what is left after ``grace_s`` by SIGKILL.

    With ``signal_first=False`` the processes are known to be leaving and are only waited for. Returns the pids
    that had to be killed.

    Raises:
        ClusterError: a process survived even SIGKILL (it belongs to another user, or hangs in the kernel).
    """
    records = tuple(records)
    ours = belonging(cluster_id, records)
    if signal_first:
        for record in records:
            if process := record.find():
                with suppress(psutil.Error):
                    process.terminate()
    _, left = psutil.wait_procs(ours, timeout=grace_s)
    killed: list[int] = []
    # New children may have been born while we waited, and a killed parent may have respawned one: look again.
    for _ in range(5):
        left = list({process.pid: process for process in [*left, *belonging(cluster_id, records)]}.values())
        left = [process for process in left if _alive(process)]
        if not left:
            return killed
        for process in left:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
                killed.append(process.pid)
        _, left = psutil.wait_procs(left, timeout=5)
    if left := [process for process in left if _alive(process)]:
        raise ClusterError(
            f"still running after SIGKILL: {', '.join(f'pid {process.pid}' for process in left)}",
            hint="end them by hand, then run raymlops down again",
        )
    return killed


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
