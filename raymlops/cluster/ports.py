"""Ports: who listens where, and whether one is free.

Owns the reading of the machine's listeners. Starts and ends nothing.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from raymlops.config.serve import is_loopback
from raymlops.errors import PortTakenError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening TCP socket. ``pid`` is None where another user's process holds it."""

    host: str
    port: int
    pid: int | None
    process: str

    @property
    def loopback(self) -> bool:
        """Return whether only this machine can reach it."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        who = "a process of another user" if self.pid is None else f"pid {self.pid} ({self.process})"
        return f"{self.host}:{self.port} held by {who}"


def listeners(pids: Collection[int] | None = None) -> list[Listener]:
    """Return the listening sockets of the given processes, or of all that can be seen, in the order of ports."""
    found: dict[tuple[str, int, int | None], Listener] = {}
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status != psutil.CONN_LISTEN or (pids is not None and connection.pid not in pids):
            continue
        host, port = connection.laddr[:2]
        key = (host, port, connection.pid)
        found[key] = Listener(host, port, connection.pid, _name(connection.pid))
    return sorted(found.values(), key=lambda item: (item.port, item.host))


def check_free(wanted: Mapping[str, int]) -> None:
    """Check that each named port can be listened on, before anything is started.

    Raises:
        PortTakenError: some are taken, each named with who holds it; or two services ask for one port.
    """
    problems = []
    seen: dict[int, str] = {}
    for name, port in wanted.items():
        if port in seen:
            problems.append(f"port {port} is requested by both {seen[port]} and {name}")
        elif not _free(port):
            holders = [item for item in listeners() if item.port == port]
            problems.append(f"{name}: port {port} is taken, {holders[0] if holders else 'by an unknown process'}")
        seen[port] = name
    if problems:
        raise PortTakenError(
            "\n".join(problems),
            hint="end that process, or choose other ports: --http-port, --dashboard-port, --mlflow-port, --ray-port",
        )


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def free_port_like(port: int, *, besides: Collection[int] = ()) -> int:
    """Return this port if it is free and not one of ``besides``, else any free one."""
    return port if port not in besides and _free(port) else free_port()


def answers(host: str, port: int, *, timeout_s: float = 3.0) -> bool:
    """Return whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return True
    except OSError:
        return False


def _free(port: int) -> bool:
    # SO_REUSEADDR as servers set it: a port whose last connections are still closing is free for them.
    # The wildcard is tried too, because a listener on all interfaces does not stop a bind to loopback everywhere.
    for host in (HOST, "0.0.0.0"):  # noqa: S104 - bound for a moment, never listened on
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True


def _name(pid: int | None) -> str:
    if pid is None:
        return ""
    try:
        process = psutil.Process(pid)
        return " ".join(process.cmdline()[:4])[:80] or process.name()
    except psutil.Error:
        return "?"
