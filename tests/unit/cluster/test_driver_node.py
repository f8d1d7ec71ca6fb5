"""A driver whose node ends says so, with the command that resumes its work."""

from __future__ import annotations

import socket
import threading

import pytest

from raymlops.cluster.driver_node import node_watched, reporting_by, resumable


@pytest.fixture
def raylet(tmp_path):
    """Yield the path of a socket that something listens on, and how to end it."""
    path = str(tmp_path / "raylet")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def end():
            accepted, _ = listener.accept()
            accepted.close()

        yield path, end


def test_the_end_of_a_node_is_reported_with_how_to_resume(raylet):
    """The exit code is that of an unreachable cluster."""
    path, end = raylet
    reported, left, gone = [], [], threading.Event()

    def leave(code):
        left.append(code)
        gone.set()

    with (
        reporting_by(reported.append),
        resumable("raymlops sweep --resume s1"),
        node_watched(path, leave=leave),
    ):
        end()
        assert gone.wait(10)
    assert left == [5]
    assert "has ended" in reported[0].message
    assert reported[0].hint.endswith("resume: raymlops sweep --resume s1")


def test_a_node_that_goes_on_is_let_go_of(raylet, capfd):
    """Leaving the block ends the watch, and nothing is said."""
    with node_watched(raylet[0], leave=pytest.fail):
        pass
    assert threading.active_count() == len([t for t in threading.enumerate() if t.name != "raymlops-driver-node"])
    assert capfd.readouterr() == ("", "")


def test_a_node_that_cannot_be_reached_is_not_watched(tmp_path):
    """The work is done all the same."""
    with node_watched(str(tmp_path / "none"), leave=pytest.fail):
        pass
