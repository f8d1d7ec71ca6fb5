"""A driver whose node ends says so, with the command that resumes its work."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest

from raymlops.cluster.driver_node import end_drivers, node_watched, reporting_by, resumable

DRIVER = """
import multiprocessing, os, sys, threading
from pathlib import Path
from raymlops.cluster.driver_node import node_watched
with node_watched(sys.argv[1], drivers=Path(sys.argv[2])):
    until = os.dup(0)
    def child():
        print("attached", flush=True)
        os.read(until, 1)  # until the test has ended
    multiprocessing.get_context("fork").Process(target=child).start()
    threading.Event().wait()
"""


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


def test_a_node_is_watched_where_down_cannot_find_its_driver(raylet, tmp_path):
    """The folder is another user's, or the disk is full."""
    path, end = raylet
    gone = threading.Event()
    (tmp_path / "drivers").touch()
    with (
        reporting_by(lambda _error: None),
        node_watched(path, drivers=tmp_path / "drivers", leave=lambda _code: gone.set()),
    ):
        end()
        assert gone.wait(10)


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


@pytest.fixture
def driver(raylet, tmp_path):
    """Yield a driver in a process of its own, with a forked child, and the folder in which it is found."""
    (tmp_path / "drivers").mkdir()
    command = [sys.executable, "-c", DRIVER, raylet[0], str(tmp_path / "drivers")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout.readline() == "attached\n"
        yield process, tmp_path / "drivers"
        process.kill()
        process.stdin.close()


def test_a_driver_has_left_when_its_node_may_be_ended(driver):
    """The node still runs, so that Ray has no reason to end the driver first; its forked child lives on."""
    process, folder = driver
    end_drivers(folder, timeout_s=60)
    assert process.wait(60) == 5
    assert "raymlops down stops the cluster" in process.stderr.readline()


def test_a_killed_driver_does_not_listen_on_in_its_child(driver):
    """So that nothing waits for an answer that never comes."""
    process, folder = driver
    process.kill()
    process.wait()
    with socket.socket(socket.AF_UNIX) as connection, pytest.raises(ConnectionRefusedError):
        connection.connect(str(folder / str(process.pid)))


def test_drivers_that_were_killed_are_not_waited_for(tmp_path):
    """Nor is there a folder where no driver ever was."""
    end_drivers(tmp_path / "drivers", timeout_s=60)
    (tmp_path / "drivers").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "drivers" / "1"))
    end_drivers(tmp_path / "drivers", timeout_s=60)


def test_a_driver_that_has_ended_by_itself_leaves_no_socket(raylet, tmp_path):
    """It takes the place of one that was killed, whose pid it has."""
    folder = tmp_path / "drivers"
    folder.mkdir()
    (folder / str(os.getpid())).touch()
    with node_watched(raylet[0], drivers=folder, leave=pytest.fail):
        assert [path.is_socket() for path in folder.iterdir()] == [True]
    assert list(folder.iterdir()) == []
