"""The trigger that follows a job while no worker is held."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from airflow.sdk import Connection
from airflow.triggers.base import BaseTrigger, TriggerEvent

from raymlops_airflow.connection import ray_jobs
from raymlops_airflow.ray_jobs import Follower, RayJobsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class RayJobTrigger(BaseTrigger):
    """Fires once a job has ended, or once that cannot be known, and hands ``told`` on to the task.

    ``stops`` the job when somebody clears or marks the task.
    """

    def __init__(
        self, *, conn_id: str, job: str, poll_s: float, patience_s: float, stops: bool, told: dict[str, Any]
    ) -> None:
        super().__init__()
        self.conn_id, self.job, self.poll_s, self.patience_s = conn_id, job, poll_s, patience_s
        self.stops, self.told = stops, told

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what the triggerer makes it from; the token stays in the connection."""
        names = ("conn_id", "job", "poll_s", "patience_s", "stops", "told")
        return "raymlops_airflow.triggers.RayJobTrigger", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Follow the job; its log is that of the task."""
        try:
            jobs = ray_jobs(await Connection.async_get(self.conn_id), patience_s=self.patience_s)
            follower = Follower(jobs, self.job, self.log.info)
            job = await asyncio.to_thread(follower.look)
            while job is None:
                await asyncio.sleep(self.poll_s)
                job = await asyncio.to_thread(follower.look)
        except RayJobsError as error:
            yield TriggerEvent({**self.told, "error": str(error)})
        else:
            yield TriggerEvent({**self.told, "status": job["status"]})

    async def on_kill(self) -> None:
        """Stop the job: the task was cleared, or marked as failed or succeeded."""
        if self.stops:
            jobs = ray_jobs(await Connection.async_get(self.conn_id), patience_s=0.0)
            await asyncio.to_thread(jobs.stop, self.job)
