"""Submit a sweep to a running cluster as a Ray job, which outlives this process.

Owns the command of the job, and the wait until its sweep has an id or has failed to start.
"""

from __future__ import annotations

import logging
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from raymlops.errors import SweepError, UnreachableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from raymlops.cluster.jobs import Jobs
    from raymlops.lifecycle.sweeps.run import SweepRequest
    from raymlops.project import Project
    from raymlops.tracking.client import Tracker

_log = logging.getLogger(__name__)

_POLL_S = 0.5


def submit(
    request: SweepRequest,
    *,
    tags: Mapping[str, str] | None = None,
    working_dir: str | Path | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Submit a sweep to the running cluster and return its id once it has one; an interrupt until then stops the job.

    Raises:
        ClusterError: no cluster outlives this process, or it does not answer.
        RaymlopsError: as ``run_sweep``, also for what the job itself rejected.
    """
    from raymlops.cluster.jobs import CONFIG, Jobs, explicit, job_folder
    from raymlops.config.load import dump
    from raymlops.tracking.client import tracker as tracker_of

    project, resume = request.project, request.resume
    spec = explicit(project.spec, tags=tags or {})
    jobs = Jobs.of(spec)
    submission_id = f"raymlops-{spec.project.name}-{uuid.uuid4().hex[:8]}"
    tracker = tracker_of(spec)
    tracker.check()
    arguments = ["sweep", "--config", CONFIG, "--json"]
    arguments += ["--resume", resume] if resume is not None else []
    arguments += ["--retry-failed"] if request.retry_failed else []
    arguments += ["--fork", request.fork.run_id] if request.fork is not None else []
    sent = _folder(working_dir)
    with job_folder(dump(spec), code=_code(project, alone=sent is None), working_dir=sent) as folder:
        jobs.submit(arguments, folder=folder, submission_id=submission_id)
    try:
        return _wait(jobs, tracker, request, submission_id=submission_id, sleep=sleep)
    except KeyboardInterrupt:
        jobs.stop(submission_id)
        raise
    except UnreachableError as error:
        error.add_note(f"The job {submission_id} may still be running: `ray job stop {submission_id}` stops it.")
        raise


def _code(project: Project, *, alone: bool) -> dict[str, bytes]:
    from raymlops.bundle.code import collect

    code = collect(project.recipe_class)
    if alone and code.left_out:
        _log.warning(
            "the job is submitted without %s from the package of %s: working_dir=FOLDER uploads a whole folder",
            ", ".join(code.left_out[:5]) + (" ..." if len(code.left_out) > 5 else ""),
            project.reference,
        )
    return code.files


def _folder(working_dir: str | Path | None) -> Path | None:
    if working_dir is None:
        return None
    folder = Path(working_dir).expanduser()
    if not folder.is_dir():
        raise UsageError(f"working_dir {str(working_dir)!r} is not a folder", hint="Name the job's working directory.")
    return folder


def _wait(
    jobs: Jobs, tracker: Tracker, request: SweepRequest, *, submission_id: str, sleep: Callable[[float], None]
) -> str:
    """Wait until the sweep of a job exists in MLflow, and return its id."""
    from raymlops.training.runs.lookup import runs_tagged
    from raymlops.tuning.mlflow.sweep_run import SUBMISSION

    resume = request.resume
    while True:
        state = jobs.state(submission_id)  # before MLflow: a job that has ended writes nothing more there
        if resume is not None:
            if tracker.run(resume).data.tags.get(SUBMISSION) == submission_id:
                return resume
        elif runs := runs_tagged(tracker, request.project.spec.experiment, {SUBMISSION: submission_id}):
            return str(runs[0].info.run_id)
        if state.ended:
            raise jobs.failure(state, what="ended before its sweep started", kind=SweepError)
        sleep(_POLL_S)
