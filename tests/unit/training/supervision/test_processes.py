"""Nodes that workers are kept off, and processes that give up their places."""

from __future__ import annotations

import threading
from typing import Any

from raymlops.cluster.placement import TaskWait
from raymlops.training.supervision.processes import StartedAhead, excluding


def test_a_selector_names_the_nodes_that_are_left_out() -> None:
    """Ray's words for "none of these"; without any there is nothing to select."""
    assert excluding({"b" * 56, "a" * 56}) == {"ray.io/node-id": f"!in({'a' * 56},{'b' * 56})"}
    assert excluding(()) is None


class Processes:
    """Processes that say when they are ended."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def end(self) -> None:
        self.ended.set()


class Driver:
    """A driver whose tasks wait, or not, and a cluster that has no room for some task."""

    def __init__(self, *, waits: bool) -> None:
        self._waits = waits
        self.asked = threading.Semaphore(0)

    def awaits(self) -> bool:
        self.asked.release()
        return self._waits

    def task_wait(self, **_workers: Any) -> TaskWait | None:
        return TaskWait("tasks", forever=False)


def ahead(processes: Processes, driver: Driver) -> StartedAhead:
    room: Any = driver
    started: Any = processes
    return StartedAhead(started, room=room, awaits=driver.awaits, every_s=0.001)


def test_processes_give_up_their_places_to_tasks_of_their_driver() -> None:
    """A pipeline in ``datasets()`` would wait for them for ever."""
    processes = Processes()
    with ahead(processes, Driver(waits=True)) as started:
        assert processes.ended.wait(5.0)
        assert started.take() is None


def test_processes_keep_their_places_where_others_tasks_wait() -> None:
    """Until they are taken, and then whatever waits."""
    processes, driver = Processes(), Driver(waits=False)
    with ahead(processes, driver) as started:
        for _ in range(5):
            assert driver.asked.acquire(timeout=5.0)
        assert started.take() is processes
        driver._waits = True
        started._thread.join(5.0)
        assert not processes.ended.is_set()
    assert processes.ended.is_set()
