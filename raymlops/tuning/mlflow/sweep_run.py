"""The parent run of a sweep in MLflow: opened, opened again, tagged and ended.

Owns which tags say what of a sweep. Knows nothing of trials.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Self

from raymlops.errors import NotFoundError, UsageError
from raymlops.records import SpentRecord
from raymlops.signals import undisturbed
from raymlops.training.runs.lookup import STORAGE_PATH, absolute, look_up
from raymlops.training.runs.mlflow_run import open_run
from raymlops.training.runs.writer import REASON, RunWriter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from raymlops.config.schema import ProjectSpec
    from raymlops.project import Project
    from raymlops.records import DataRecord
    from raymlops.tracking.client import Tracker
    from raymlops.training.runs.lookup import Recorded

STUDY = "raymlops.study"
SPENT = "raymlops.spent"
FORKED_FROM = "raymlops.forked_from"
SUBMISSION = "raymlops.submission_id"
"""Tags: the Optuna study, what the sweep took so far, the sweep whose trials it knows, the Ray job that runs it."""

STOPPED, REPORT = "raymlops.stopped", "raymlops.report"
BEST_TRIAL, BEST_RUN, BEST_CONFIG = "raymlops.best_trial", "raymlops.best_run_id", "raymlops.best_config"
ENDED = (STOPPED, REPORT, BEST_TRIAL, BEST_RUN, BEST_CONFIG)
"""Tags: which budget ended the sweep, its report, its winner."""


class Parent:
    """One sweep's own run."""

    def __init__(self, tracker: Tracker, sweep_id: str) -> None:
        self.sweep_id = sweep_id
        self._tracker = tracker

    @classmethod
    def opened(
        cls,
        tracker: Tracker,
        project: Project,
        data: DataRecord,
        *,
        tags: Mapping[str, str],
        submission_id: str,
        forked_from: Recorded | None,
    ) -> Self:
        """Make the run, with all that is known before the first trial.

        Raises:
            TrackingError: MLflow does not take it.
        """
        from raymlops.tuning.objectives import metric_of

        known = {
            "raymlops.metric": metric_of(project.spec),
            STORAGE_PATH: absolute(project.spec.storage.path),
            SUBMISSION: submission_id,
            FORKED_FROM: "" if forked_from is None else forked_from.run_id,
        }
        return cls(tracker, open_run(tracker, project, data, tags={**tags, **known}, kind="sweep"))

    def study_name(self, spec: ProjectSpec) -> str:
        """Return the name of the sweep's study."""
        return _study_name(spec, self.sweep_id)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags now."""
        self._tracker.log_batch(self.sweep_id, tags=tags)

    def reopen(self, *, submission_id: str) -> None:
        """Mark the run as RUNNING again; what was said of its end is taken back."""
        self._tracker.reopen_run(self.sweep_id, without_tags=[REASON, *ENDED])
        if submission_id:
            self.tag({SUBMISSION: submission_id})

    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"], tags: Mapping[str, str]) -> None:
        """Say how the sweep ended."""
        points = [
            (name.removeprefix("raymlops.best."), float(value), 0, int(time.time() * 1000))
            for name, value in tags.items()
            if name.startswith("raymlops.best.")
        ]
        self._tracker.log_batch(self.sweep_id, points, tags)
        self._tracker.end_run(self.sweep_id, status)

    @contextmanager
    def closing_on_error(self) -> Iterator[None]:
        """Close the run with why it ended, where the block raises."""
        try:
            yield
        except BaseException as error:
            with undisturbed():
                RunWriter(self._tracker, self.sweep_id).close_failed(error)
            raise


def sweep_of(tracker: Tracker, sweep_id: str) -> Recorded:
    """Return a sweep by its id.

    Raises:
        NotFoundError: there is no such run.
        UsageError: it is no sweep, or one that was never written down whole.
    """
    recorded = look_up(tracker, sweep_id)
    name = f"{sweep_id} ({recorded.name})"
    if recorded.kind == "run":
        raise UsageError(f"{name} is a run, not a sweep", hint=f"raymlops train --resume {sweep_id} goes on with it.")
    if recorded.kind == "trial":
        parent = recorded.tags.get("mlflow.parentRunId", "?")
        raise UsageError(
            f"{name} is a trial of the sweep {parent}", hint=f"Name that: raymlops sweep --resume {parent}"
        )
    if recorded.kind != "sweep":
        raise NotFoundError(f"{name} is no sweep of raymlops: it has no tag raymlops.kind")
    if recorded.spec is None:
        raise UsageError(
            f"the sweep {name} has no configuration that can be read: it ended while it was being made",
            hint="Start a new one: raymlops sweep --config FILE.",
        )
    return recorded


def study_of(recorded: Recorded) -> str:
    """Return the name of a sweep's study; that which it would have where its driver died before it said so."""
    assert recorded.spec is not None
    return recorded.tags.get(STUDY) or _study_name(recorded.spec, recorded.run_id)


def before_of(recorded: Recorded) -> SpentRecord:
    """Return what a sweep had taken when it was last heard of."""
    try:
        data = json.loads(recorded.tags.get(SPENT) or "{}")
    except ValueError:
        return SpentRecord()
    return SpentRecord.from_dict(data) if isinstance(data, dict) else SpentRecord()


def _study_name(spec: ProjectSpec, sweep_id: str) -> str:
    return f"{spec.project.name}-{sweep_id}"
