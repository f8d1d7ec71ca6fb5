"""The results that a sweep writes when it ends: the winner's configuration, the report, the trials as JSON, the tags.

Owns these files and their places. Knows nothing of how trials ran.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from raymlops.config.load import dump
from raymlops.errors import SweepError
from raymlops.records import SCHEMA_VERSION
from raymlops.storage.filesystem import join, write_bytes
from raymlops.training.runs.lookup import SWEEPS
from raymlops.tuning.mlflow.sweep_run import BEST_CONFIG, BEST_RUN, BEST_TRIAL, REPORT, STOPPED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.project import Project
    from raymlops.records import Objective, SpentRecord, SweepRecord, TrialRecord
    from raymlops.tracking.client import Tracker


def folder_of(spec: ProjectSpec, sweep_id: str) -> str:
    """Return the folder of a sweep's files."""
    return join(spec.storage.path, SWEEPS, sweep_id)


def write_best(project: Project, store: Tracker, best: TrialRecord, *, sweep_id: str, objective: Objective) -> str:
    """Write the winner's whole configuration, which ``train`` takes, into the sweep's folder and its run.

    Raises:
        StorageError, TrackingError: it cannot be written.
    """
    if best.value is None:
        raise SweepError(f"trial {best.number} has no value")
    header = (
        f"# Trial {best.number} of sweep {sweep_id}: {objective.metric} = {best.value:.6g} "
        f"after {best.epochs} epochs ({best.status}).\n"
    )
    text = header + dump(project.with_params(best.params).spec)
    uri = join(folder_of(project.spec, sweep_id), "best.yaml")
    write_bytes(uri, text.encode())
    store.log_text(sweep_id, text, "config/best.yaml")
    return uri


def write_report(
    study: Any,
    project: Project,
    *,
    records: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    spent: SpentRecord,
    sweep_id: str,
    stopped: str,
    best: TrialRecord | None,
) -> str:
    """Write the HTML report into the sweep's folder, and return its URI, which the sweep's run has as a tag."""
    from raymlops.tuning.reporting.report import html

    text = html(
        study,
        records=records,
        objectives=objectives,
        spec=project.spec,
        spent=spent,
        sweep_id=sweep_id,
        stopped=stopped,
        best=best,
        best_config_text="" if best is None else dump(project.with_params(best.params).spec),
    )
    uri = join(folder_of(project.spec, sweep_id), "report.html")
    write_bytes(uri, text.encode())
    return uri


def write_trials(store: Tracker, records: Sequence[TrialRecord], *, sweep_id: str, objective: Objective) -> None:
    """Write all trials as JSON to the sweep's MLflow run.

    Raises:
        TrackingError: MLflow rejects it.
    """
    data = {
        "schema_version": SCHEMA_VERSION,
        "metric": objective.metric,
        "mode": objective.mode,
        "trials": [record.to_dict() for record in records],
    }
    store.log_text(sweep_id, json.dumps(data, indent=1), "sweep/trials.json")


def tags_of(record: SweepRecord) -> dict[str, str]:
    """Return the tags of the sweep's run that describe how it ended."""
    found = {
        BEST_TRIAL: str(record.best.number),
        BEST_RUN: record.best.run_id or "",
        BEST_CONFIG: record.best_config,
        REPORT: record.report,
        STOPPED: record.stopped,
        f"raymlops.best.{record.metric}": repr(record.best.value),
    }
    return {name: text for name, text in found.items() if text}
