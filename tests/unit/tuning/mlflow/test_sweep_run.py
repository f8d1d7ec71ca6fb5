from __future__ import annotations

from typing import TYPE_CHECKING

from recorded_sweep import project_in

from raymlops.records import DataRecord
from raymlops.tracking.client import Tracker
from raymlops.training.runs.mlflow_run import CONFIG
from raymlops.tuning.mlflow.sweep_run import SUBMISSION, SweepRun

if TYPE_CHECKING:
    from pathlib import Path


class Watched(Tracker):
    """A tracker that notes which artifacts are written while the run can be found by its job already."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.written: list[str] = []
        self.too_late: list[str] = []

    def log_text(self, run_id: str, text: str, path: str) -> None:
        super().log_text(run_id, text, path)
        self.written.append(path)
        if SUBMISSION in self.run(run_id).data.tags:
            self.too_late.append(path)


def test_a_job_names_its_sweep_once_it_can_be_read(storage_path: Path) -> None:
    """Whoever submitted the job looks for the tag, and then reads the configuration, which has to be there."""
    tracker = Watched(f"sqlite:///{storage_path}/mlflow.db")
    created = SweepRun.create(
        tracker,
        project_in(storage_path),
        DataRecord("f", {"train": 1}),
        tags={},
        submission_id="job-1",
        forked_from=None,
    )
    assert CONFIG in tracker.written
    assert tracker.too_late == []
    assert tracker.run(created.sweep_id).data.tags[SUBMISSION] == "job-1"
