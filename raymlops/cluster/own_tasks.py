"""Whether this process waits for Ray tasks that need room: plain ones, and calls of actors that have not started.

Calls of actors that run are not counted: they have their room.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Literal

_OWN, _ACTOR = 16, 48
"""Hex digits of a task's id (Ray 2.60): its own, then those of its actor's id, which end with the job's."""
_JOB = 8
_UNSTARTED = {"DEPENDENCIES_UNREADY", "PENDING_CREATION", "RESTARTING"}


def awaits_tasks() -> bool:
    """Return whether this process, in any thread, holds the result of a task that needs room; False without Ray."""
    import ray
    from ray._private.worker import global_worker

    with suppress(Exception):  # Ray 2.60 has no public call for it that needs no dashboard
        held = [key.decode() for key in global_worker.core_worker.get_all_reference_counts()]
        refs = [ray.ObjectRef(bytes.fromhex(each)) for each in held if kind_of(each) != "none"]
        pending = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)[1] if refs else []
        kinds = {kind_of(ref.hex()) for ref in pending}
        actors = {ref.task_id().actor_id().hex() for ref in pending if kind_of(ref.hex()) == "call"}
        return "plain" in kinds or any(ray._private.state.actors(each)["State"] in _UNSTARTED for each in actors)  # noqa: SLF001
    return False


def kind_of(object_id: str) -> Literal["plain", "call", "none"]:
    """Return what gives an object, by its id in hex digits: a plain task, the call of an actor, or none."""
    own, actor = object_id[:_OWN], object_id[_OWN : _ACTOR - _JOB]
    if not own.strip("f"):
        return "none"  # put by a driver, or an actor's handle
    return "call" if actor.strip("f") else "plain"
