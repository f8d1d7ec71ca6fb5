from __future__ import annotations

import socket

import pytest

from raymlops.errors import ClusterError, PortTakenError, UsageError
from raymlops.serving.control.start import check_port, free_port, start_proxy


def test_a_taken_port_is_found_before_anything_starts():
    """Somebody listens there, and the error says which port."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortTakenError, match=str(port)) as caught:
            check_port("127.0.0.1", port)
        assert caught.value.hint == "Set serve.port to another one, or to 0 for any free one."
        with pytest.raises(PortTakenError) as caught:
            check_port("127.0.0.1", port, setting="serve.grpc_port")
        assert caught.value.hint == "Set serve.grpc_port to another one."


def test_a_free_port_can_be_listened_on():
    """A port that was found free passes the check."""
    check_port("127.0.0.1", free_port("127.0.0.1"))


def test_an_address_of_another_machine_is_refused():
    """203.0.113.0/24 is set aside for documentation, so no machine has it."""
    with pytest.raises(UsageError, match="cannot listen"):
        check_port("203.0.113.9", 21060)


def test_without_ray_there_is_no_serve():
    """The proxy needs a connected cluster; none is started behind the caller's back."""
    with pytest.raises(ClusterError, match="not connected"):
        start_proxy("127.0.0.1", 21061)
