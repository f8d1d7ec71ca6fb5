"""``retraining-job``: what the loop submits to the cluster. Not for people, who have ``raymlops retrain``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from raymlops.cli.output import Answer, ConfigOption


def retraining_job(
    retraining_id: Annotated[str, typer.Argument(metavar="ID", help="The retraining.")],
    task: Annotated[Literal["train", "gate", "replay"], typer.Argument(metavar="TASK", help="train, gate or replay.")],
    config: ConfigOption,
) -> Answer:
    """Run a task of a retraining, in the job that the controller submitted."""
    from raymlops.lifecycle.retraining_job import retraining_job as run_task

    record: Any = run_task(config, retraining_id, task)
    return Answer(record.to_dict(), f"{record.task}  {record.result}")
