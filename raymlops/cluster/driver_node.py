"""The Ray node that a driver is attached to. When it ends, the driver ends: this module reports it first.

Ray (2.60) ends a driver whose node is gone by ``_Exit(1)``, in C++, as soon as it next touches the object store: no
exception is raised and nothing is printed. A thread that holds a connection to the node notices its end at once,
reports a ``ClusterError`` with the command that resumes the work, and exits with that error's code. It may come second
to Ray; ``raymlops down`` therefore asks each driver to leave, and waits, before it ends anything.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.util import register_after_fork
from typing import TYPE_CHECKING

from raymlops.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Report = Callable[[ClusterError], object]

_resume: list[str] = []
_reports: list[Report] = []


@contextmanager
def resumable(command: str) -> Iterator[None]:
    """Name the command that resumes the work of the block, should its node end."""
    _resume.append(command)
    try:
        yield
    finally:
        _resume.pop()


@contextmanager
def reporting_by(report: Report) -> Iterator[None]:
    """Report a lost node by ``report`` during the block, as the command line reports its errors."""
    _reports.append(report)
    try:
        yield
    finally:
        _reports.pop()


@contextmanager
def node_watched(*paths: str, drivers: Path | None = None, leave: Callable[[int], object] = os._exit) -> Iterator[None]:
    """Watch the node that listens on these Unix sockets, its raylet's and its store's; when one ends, report and exit.

    The store's closes first where a node ends in good order. A node that cannot be reached is not watched.
    ``drivers`` is the folder where ``end_drivers`` finds this driver.
    """
    with ExitStack() as stack:
        connections = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in paths]
        try:
            for connection, path in zip(connections, paths, strict=True):
                connection.connect(path)
        except OSError:
            yield
            return
        down: list[socket.socket] = []
        if drivers is not None:
            with suppress(OSError):  # a folder that cannot be used costs only what `down` says
                down.append(stack.enter_context(_listening(drivers)))
        wake, done = socket.socketpair()
        stack.callback(wake.close)
        stack.callback(done.close)

        def watch() -> None:
            readable, _, _ = select.select([*connections, *down, wake], [], [])
            # Neither sends anything to a client that requests nothing, so what can be read is its end.
            if wake in readable:
                return
            # Closed by the end of this process, which is what `down` waits for.
            calls = [listener.accept() for listener in down if listener in readable]
            _report_lost(by_down=bool(calls))
            leave(ClusterError.exit_code)

        thread = threading.Thread(target=watch, name="raymlops-driver-node", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.send(b".")
            thread.join()


def end_drivers(drivers: Path, *, timeout_s: float = 5.0) -> None:
    """Ask the drivers that listen in a folder to leave, and wait until they have; one that hangs is not waited for."""
    with ExitStack() as stack:
        asked = []
        for path in drivers.glob("*"):
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            with suppress(OSError):  # a driver that was killed listens no more
                connection.connect(str(path))
                asked.append(connection)
        deadline = time.monotonic() + timeout_s
        for connection in asked:
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            with suppress(OSError):
                connection.recv(1)  # nothing is ever sent, so what can be read is its end


@contextmanager
def _listening(drivers: Path) -> Iterator[socket.socket]:
    path = drivers / str(os.getpid())
    path.unlink(missing_ok=True)  # of an earlier process with this pid
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        # A data loader's process may outlive a driver that was killed, and `down` would wait for its copy. One that
        # os.fork alone made keeps it.
        register_after_fork(listener, socket.socket.close)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _report_lost(*, by_down: bool) -> None:
    happened = (
        "raymlops down stops the cluster that this process is attached to"
        if by_down
        else "the Ray node that this process is attached to has ended; the cluster was stopped, or the node died"
    )
    then = f", then resume: {_resume[-1]}" if _resume else ", then run the same command again"
    error = ClusterError(happened, hint=f"Start the cluster again{then}")
    with suppress(Exception):  # whatever happens, the process has to leave with the right code
        if _reports:
            _reports[-1](error)
        else:
            sys.stderr.write(f"error: {error}\n")
        sys.stdout.flush()
        sys.stderr.flush()
