"""The Ray node that a driver is attached to. When it ends, the driver ends: this module reports it first.

Ray (2.60) ends a driver whose node is gone by ``_Exit(1)``, in C++, as soon as it next touches the object store: no
exception is raised and nothing is printed. A thread that holds a connection to the node notices its end at once,
reports a ``ClusterError`` with the command that resumes the work, and exits with that error's code.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from raymlops.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
def node_watched(*paths: str, leave: Callable[[int], object] = os._exit) -> Iterator[None]:
    """Watch the node that listens on these Unix sockets, its raylet's and its store's; when one ends, report and exit.

    The store's closes first where a node ends in good order. A node that cannot be reached is not watched.
    """
    with ExitStack() as stack:
        connections = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in paths]
        try:
            for connection, path in zip(connections, paths, strict=True):
                connection.connect(path)
        except OSError:
            yield
            return
        wake, done = socket.socketpair()
        stack.callback(wake.close)
        stack.callback(done.close)

        def watch() -> None:
            readable, _, _ = select.select([*connections, wake], [], [])
            # Neither sends anything to a client that requests nothing, so what can be read is its end.
            if wake not in readable:
                _report_lost()
                leave(ClusterError.exit_code)

        thread = threading.Thread(target=watch, name="raymlops-driver-node", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.send(b".")
            thread.join()


def _report_lost() -> None:
    then = f", then resume: {_resume[-1]}" if _resume else ", then run the same command again"
    error = ClusterError(
        "the Ray node that this process is attached to has ended; the cluster was stopped, or the node died",
        hint=f"Start the cluster again{then}",
    )
    with suppress(Exception):  # whatever happens, the process has to leave with the right code
        if _reports:
            _reports[-1](error)
        else:
            sys.stderr.write(f"error: {error}\n")
        sys.stdout.flush()
        sys.stderr.flush()
