"""The trigger that follows a job while no worker is held."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from airflow.sdk import Connection
from airflow.triggers.base import BaseTrigger, TriggerEvent

from raymlops_airflow.connection import ray_jobs
from raymlops_airflow.ray_jobs import Follower, RayJobsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class RayJobTrigger(BaseTrigger):
    """Fires once a job has ended, or once that cannot be known, and hands ``told`` on to the task.

    ``stops`` the job when somebody clears or marks the task, and at the time ``ends_at``: Airflow's own time-out of a
    trigger says nothing to it.
    """

    def __init__(
        self,
        *,
        conn_id: str,
        job: str,
        poll_s: float,
        patience_s: float,
        stops: bool,
        told: dict[str, Any],
        ends_at: float | None = None,
    ) -> None:
        super().__init__()
        self.conn_id, self.job, self.poll_s, self.patience_s = conn_id, job, poll_s, patience_s
        self.stops, self.told, self.ends_at = stops, told, ends_at

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what the triggerer makes it from; the token stays in the connection."""
        names = ("conn_id", "job", "poll_s", "patience_s", "stops", "told", "ends_at")
        return "raymlops_airflow.triggers.RayJobTrigger", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Follow the job; its log is that of the task."""
        try:
            jobs = ray_jobs(await Connection.async_get(self.conn_id), patience_s=self.patience_s)
            follower = Follower(jobs, self.job, self.log.info)
            while (job := await asyncio.to_thread(follower.look)) is None:
                if self.ends_at is not None and time.time() >= self.ends_at:
                    await asyncio.to_thread(jobs.stop, self.job)
                    break
                await asyncio.sleep(self.poll_s)
        except RayJobsError as error:
            told = {"error": str(error)}
        else:
            late = f"the job {self.job} ran for longer than execution_timeout, and was stopped"
            told = {"status": job["status"]} if job else {"error": late}
        yield TriggerEvent({**self.told, **told})

    async def on_kill(self) -> None:
        """Stop the job: the task was cleared, or marked as failed or succeeded."""
        if self.stops:
            jobs = ray_jobs(await Connection.async_get(self.conn_id), patience_s=0.0)
            await asyncio.to_thread(jobs.stop, self.job)
