"""Which objects of a process are results of tasks that need room."""

from __future__ import annotations

from ray import ActorID, JobID, ObjectRef, TaskID

from raymlops.cluster.own_tasks import awaits_tasks, kind_of

JOB = JobID.from_int(3)
DRIVER = TaskID.for_driver_task(JOB)
ACTOR = ActorID.of(JOB, DRIVER, 1)


def first_result(task: TaskID) -> str:
    """Return the id of a task's first result: the task's, and a number of four bytes."""
    return task.hex() + "01000000"


def test_objects_are_told_apart_by_their_ids() -> None:
    """As Ray (2.60) makes them."""
    assert len(first_result(DRIVER)) == 2 * ObjectRef.size()
    assert kind_of(first_result(TaskID.for_normal_task(JOB, DRIVER, 1))) == "plain"
    assert kind_of(first_result(TaskID.for_actor_task(JOB, DRIVER, 1, ACTOR))) == "call"
    assert kind_of(first_result(TaskID.for_actor_creation_task(ACTOR))) == "none"
    assert kind_of(first_result(DRIVER)) == "none"


def test_a_process_without_ray_waits_for_nothing() -> None:
    """Nor does one whose Ray does not tell."""
    assert not awaits_tasks()
