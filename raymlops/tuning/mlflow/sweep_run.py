"""The parent run of a sweep in MLflow: created, reopened, tagged and ended.

Owns the tags of a sweep. Knows nothing of trials.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from raymlops.errors import LeaseLostError
from raymlops.records import SpentRecord
from raymlops.signals import undisturbed
from raymlops.tracking.client import now_ms
from raymlops.training.runs.lookup import check_kind, look_up, resume_command
from raymlops.training.runs.mlflow_run import open_run
from raymlops.training.runs.writer import REASON, RunWriter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from raymlops.config.schema import ProjectSpec
    from raymlops.project import Project
    from raymlops.records import DataRecord
    from raymlops.tracking.client import Tracker
    from raymlops.tracking.pending import RunStatus
    from raymlops.training.runs.lookup import Recorded

STUDY = "raymlops.study"
SPENT = "raymlops.spent"
FORKED_FROM = "raymlops.forked_from"
SUBMISSION = "raymlops.submission_id"
"""Tags: the Optuna study, the budget spent so far, the sweep that this one forks, the Ray job that runs it."""

STOPPED, REPORT = "raymlops.stopped", "raymlops.report"
BEST_TRIAL, BEST_RUN, BEST_CONFIG = "raymlops.best_trial", "raymlops.best_run_id", "raymlops.best_config"
REPEATS = "raymlops.repeats"
ENDED = (STOPPED, REPORT, BEST_TRIAL, BEST_RUN, BEST_CONFIG, REPEATS)
"""Tags: the budget that ended the sweep, its report, its best trial, and how sure that choice is."""


@dataclass(frozen=True)
class SweepRun:
    """The MLflow run of one sweep."""

    tracker: Tracker
    sweep_id: str
    resume: str
    """The command that resumes the sweep."""
    forked_from: str = ""
    """The sweep whose trials this one started with."""

    @classmethod
    def create(
        cls,
        tracker: Tracker,
        project: Project,
        data: DataRecord,
        *,
        tags: Mapping[str, str],
        submission_id: str,
        forked_from: str = "",
    ) -> Self:
        """Create the run with everything that is known before the first trial.

        Raises:
            TrackingError: MLflow does not accept it.
        """
        known = {**tags, "raymlops.metric": project.spec.objectives[0].metric, FORKED_FROM: forked_from}
        run_id = open_run(tracker, project, data, tags=known, kind="sweep")
        created = cls(tracker, run_id, resume_command("sweep", run_id, spec=project.spec), forked_from)
        if submission_id:
            # Last: whoever submitted the job finds the run by this tag, and reads its configuration at once.
            with created.closing_on_error():
                created.tag({SUBMISSION: submission_id})
        return created

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags now."""
        self.tracker.log_batch(self.sweep_id, tags=tags)

    def reopen(self, *, submission_id: str) -> None:
        """Mark the run as RUNNING again and remove the tags of its end."""
        self.tracker.reopen_run(self.sweep_id, without_tags=[REASON, *ENDED])
        if submission_id:
            self.tag({SUBMISSION: submission_id})

    def end(self, status: RunStatus, tags: Mapping[str, str]) -> None:
        """End the run with the status of the sweep."""
        points = [
            (name.removeprefix("raymlops.best."), float(value), 0, now_ms())
            for name, value in tags.items()
            if name.startswith("raymlops.best.")
        ]
        self.tracker.log_batch(self.sweep_id, points, tags)
        self.tracker.end_run(self.sweep_id, status)

    @contextmanager
    def closing_on_error(self) -> Iterator[None]:
        """End the run with the error that the block raises, unless another driver writes it now.

        An interrupt, whenever it comes, names the command that resumes the sweep.
        """
        try:
            yield
        except LeaseLostError:
            raise
        except BaseException as error:
            with undisturbed():
                if isinstance(error, KeyboardInterrupt) and not getattr(error, "__notes__", ()):
                    error.add_note(f"Resume it with: {self.resume}")
                RunWriter(self.tracker, self.sweep_id).close_failed(error)
            raise


def sweep_of(tracker: Tracker, sweep_id: str) -> Recorded:
    """Return a sweep by its id.

    Raises:
        NotFoundError: there is no such run.
        UsageError: it is not a sweep, or has no readable configuration.
    """
    recorded = look_up(tracker, sweep_id)
    check_kind(recorded, "sweep")
    return recorded


def study_of(recorded: Recorded) -> str:
    """Return the name of a sweep's study, even if its driver died before it stored it."""
    assert recorded.spec is not None
    return recorded.tags.get(STUDY) or study_name(recorded.spec, recorded.run_id)


def before_of(recorded: Recorded) -> SpentRecord:
    """Return the budget that a sweep had spent when it last stored it."""
    try:
        data = json.loads(recorded.tags.get(SPENT) or "{}")
    except ValueError:
        return SpentRecord()
    return SpentRecord.from_dict(data) if isinstance(data, dict) else SpentRecord()


def study_name(spec: ProjectSpec, sweep_id: str) -> str:
    """Return the name of the study that a sweep creates."""
    return f"{spec.project.name}-{sweep_id}"
