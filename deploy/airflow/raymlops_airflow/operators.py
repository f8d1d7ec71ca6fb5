"""The operator that runs a command as a job of a Ray cluster, and the sensor that waits for somebody else's."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, BaseSensorOperator, Connection, PokeReturnValue
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from raymlops_airflow.connection import ray_jobs
from raymlops_airflow.ray_jobs import Follower, RayJobs, RayJobsError, check, submission_id
from raymlops_airflow.triggers import RayJobTrigger

if TYPE_CHECKING:
    from collections.abc import Collection

    from airflow.sdk import Context


class RayJobOperator(BaseOperator):
    """Run a command as a job of a Ray cluster, and return what it answered.

    Its submission id is derived from the run of the DAG, the task and the command: a retry, or a task cleared after it
    succeeded, attaches to the job that there is, and Ray refuses a second one. A task that is cleared or marked while
    its job runs stops it, and one whose job runs for longer than ``execution_timeout`` too. A command that is refused,
    or wrong, is not tried again.

    ``working_dir`` is where the project is, a URI that Ray takes, such as ``s3://bucket/project-4f2a.zip``; empty where
    the nodes have it in their image. ``answers`` are exit codes with which the command has answered: 6 of
    ``drift --fail-on-drift``.
    """

    template_fields = ("command", "working_dir")

    def __init__(
        self,
        *,
        command: str,
        working_dir: str = "",
        answers: Collection[int] = (0,),
        conn_id: str = "ray",
        deferrable: bool = True,
        poll_s: float = 5.0,
        patience_s: float = 120.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.command, self.working_dir, self.answers = command, working_dir, tuple(answers)
        self.conn_id, self.deferrable, self.poll_s, self.patience_s = conn_id, deferrable, poll_s, patience_s
        self._running: tuple[RayJobs, str] | None = None
        self._killed = False

    def execute(self, context: Context) -> dict[str, Any] | None:
        """Submit or attach, follow, and return the result."""
        task = context["ti"]
        parts = (task.dag_id, task.run_id, task.task_id, task.map_index, self.command, self.working_dir)
        first = submission_id(f"{task.dag_id}.{task.task_id}", *parts)
        while True:
            job, attached = self._start(first)
            if self.deferrable:
                trigger = _trigger(self, job, stops=True, told={"job": job, "attached": attached})
                self.defer(trigger=trigger, method_name="resume")
            follower = Follower(_jobs(self), job, self.log.info)
            while (ended := _look(follower)) is None:
                time.sleep(self.poll_s)
            if self._killed or not (attached and ended["status"] == "STOPPED"):
                return _result(self, job, answers=self.answers)

    def resume(self, context: Context, event: dict[str, Any]) -> dict[str, Any] | None:
        """Go on after the trigger."""
        if event.get("status") == "STOPPED" and event["attached"]:  # on behalf of the attempt that was cleared
            return self.execute(context)
        return _result(self, event["job"], answers=self.answers, event=event)

    def on_kill(self) -> None:
        """Stop the job that this process follows.

        Airflow calls it by a signal amid ``execute``, which goes on until the process is ended: so nothing is asked of
        Airflow here.
        """
        self._killed = True
        if self._running is not None:
            jobs, job = self._running
            replace(jobs, patience_s=0.0).stop(job)

    def _start(self, first: str) -> tuple[str, bool]:
        jobs = _jobs(self)
        try:
            job, attached = jobs.start(first, self.command, working_dir=self.working_dir)
        except RayJobsError as error:
            raise _failure(error) from error
        self._running = jobs, job
        if self._killed:  # while it was submitted
            self.on_kill()
        self.log.info("%s the job %s: %s", "attached to" if attached else "submitted", job, self.command)
        return job, attached


class RayJobSensor(BaseSensorOperator):
    """Wait for a job that somebody else submitted, and return what it answered; it is not stopped with the task."""

    template_fields = ("job",)

    def __init__(
        self, *, job: str, conn_id: str = "ray", deferrable: bool = True, patience_s: float = 120.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.job, self.conn_id, self.deferrable, self.patience_s = job, conn_id, deferrable, patience_s
        self.poll_s = self.poke_interval

    def execute(self, context: Context) -> Any:
        """Defer, or poke in this process."""
        if not self.deferrable:
            return super().execute(context)
        trigger = _trigger(self, self.job, stops=False, told={})
        return self.defer(trigger=trigger, method_name="resume", timeout=self.timeout)

    def poke(self, context: Context) -> PokeReturnValue:  # noqa: ARG002 - Airflow's interface
        """Return whether it has ended, and its answer."""
        if _look(Follower(_jobs(self), self.job, lambda _: None)) is None:
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=_result(self, self.job))

    def resume(self, context: Context, event: dict[str, Any]) -> dict[str, Any] | None:  # noqa: ARG002 - as above
        """Go on after the trigger."""
        return _result(self, self.job, event=event)


def _jobs(task: RayJobOperator | RayJobSensor) -> RayJobs:
    return ray_jobs(Connection.get(task.conn_id), patience_s=task.patience_s)


def _trigger(task: RayJobOperator | RayJobSensor, job: str, *, stops: bool, told: dict[str, Any]) -> RayJobTrigger:
    waits = {"poll_s": task.poll_s, "patience_s": task.patience_s}
    limit = task.execution_timeout
    ends_at = time.time() + limit.total_seconds() if stops and limit else None
    return RayJobTrigger(conn_id=task.conn_id, job=job, stops=stops, told=told, ends_at=ends_at, **waits)


def _look(follower: Follower) -> dict[str, Any] | None:
    try:
        return follower.look()
    except RayJobsError as error:
        raise _failure(error) from error


def _failure(error: RayJobsError) -> AirflowException:
    return (AirflowFailException if error.final else AirflowException)(str(error))


def _result(
    task: RayJobOperator | RayJobSensor,
    job: str,
    *,
    answers: Collection[int] = (0,),
    event: dict[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Return what a job that ended answered: the task's XCom."""
    if event and "error" in event:
        raise AirflowException(event["error"])
    jobs = _jobs(task)
    try:
        return check(jobs.find(job) or {"submission_id": job, "status": "gone"}, jobs.log(job), answers=answers)
    except RayJobsError as error:
        raise _failure(error) from error
