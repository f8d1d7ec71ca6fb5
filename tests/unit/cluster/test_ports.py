from __future__ import annotations

import os
import socket

import pytest

from raymlops.cluster.ports import check_free, free_port, free_port_like, listeners
from raymlops.config.serve import is_loopback
from raymlops.errors import PortTakenError


@pytest.fixture
def taken():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_taken_port_is_named_with_who_holds_it(taken):
    """The service, the port and the pid: what is needed to end it or move away."""
    with pytest.raises(PortTakenError, match=rf"MLflow: port {taken} is taken, .*pid {os.getpid()} "):
        check_free({"MLflow": taken})


def test_every_taken_port_is_named_at_once(taken):
    """One run shows all there is to fix."""
    with pytest.raises(PortTakenError) as caught:
        check_free({"MLflow": taken, "Ray": free_port(), "Serve": taken})
    assert caught.value.message.count("\n") == 1
    assert "requested by both MLflow and Serve" in caught.value.message


def test_free_ports_pass():
    """Nothing is left listening by the check itself."""
    port = free_port()
    check_free({"Ray": port})
    check_free({"Ray": port})


def test_listeners_are_found_by_process(taken):
    """Our own socket, seen as loopback."""
    mine = [item for item in listeners({os.getpid()}) if item.port == taken]
    assert [(item.host, item.loopback) for item in mine] == [("127.0.0.1", True)]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("example.org", False),
    ],
)
def test_loopback_is_told_from_the_rest(host, expected):
    """The IPv6 form of 127.0.0.1, which Ray's C++ servers show, is loopback; the wildcards are not."""
    assert is_loopback(host) is expected


def test_a_port_that_nobody_needs_to_know_is_another_one_where_it_is_taken(taken):
    """By a process, or by a service that is yet to start."""
    port = free_port()
    assert free_port_like(port) == port
    for found in (free_port_like(taken), free_port_like(port, besides=[port])):
        assert found not in {taken, port}
        check_free({"HAProxy": found})
