"""Nodes that workers are kept off, and processes that give up their places."""

from __future__ import annotations

import queue
import threading
from types import SimpleNamespace
from typing import Any

from raymlops.training.supervision.processes import StartedAhead, excluding


def test_a_selector_names_the_nodes_that_are_left_out() -> None:
    """Ray's words for "none of these"; without any there is nothing to select."""
    assert excluding({"b" * 56, "a" * 56}) == {"ray.io/node-id": f"!in({'a' * 56},{'b' * 56})"}
    assert excluding(()) is None


class Processes:
    """Processes that say when they are ended."""

    def __init__(self) -> None:
        self.group = SimpleNamespace(id=SimpleNamespace(hex=lambda: "0a"))
        self.ended = threading.Event()

    def end(self) -> None:
        self.ended.set()


class Cluster:
    """A cluster where something waits for the places of a placement group, or nothing does."""

    def __init__(self, *, waits: bool) -> None:
        self.waits = waits
        self.asked: queue.Queue[str] = queue.Queue()

    def blocks(self, group_id: str) -> bool:
        self.asked.put(group_id)
        return self.waits


def ahead(processes: Processes, cluster: Cluster) -> StartedAhead:
    room: Any = cluster
    started: Any = processes
    return StartedAhead(started, room=room, every_s=0.001)


def test_processes_give_up_their_places_to_what_waits() -> None:
    """A pipeline, an actor or a placement group of ``datasets()`` would wait for them for ever."""
    processes, cluster = Processes(), Cluster(waits=True)
    with ahead(processes, cluster) as started:
        assert processes.ended.wait(5.0)
        assert started.take() is None
    assert cluster.asked.get() == "0a"


def test_processes_keep_their_places_where_nothing_waits() -> None:
    """Until they are taken, and then whatever waits."""
    processes, cluster = Processes(), Cluster(waits=False)
    with ahead(processes, cluster) as started:
        for _ in range(5):
            cluster.asked.get(timeout=5.0)
        assert started.take() is processes
        cluster.waits = True
        started._thread.join(5.0)
        assert not processes.ended.is_set()
    assert processes.ended.is_set()
