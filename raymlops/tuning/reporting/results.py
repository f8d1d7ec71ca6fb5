"""The results that a sweep writes when it ends: the winner's configuration, the report, the trials as JSON, the tags.

Owns these files and their places. Knows nothing of how trials ran.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from raymlops.config.load import dump
from raymlops.records import SCHEMA_VERSION
from raymlops.storage.filesystem import join, write_bytes
from raymlops.training.runs.lookup import SWEEPS
from raymlops.tuning.mlflow.sweep_run import BEST_CONFIG, BEST_RUN, BEST_TRIAL, REPORT, STOPPED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.records import SpentRecord, SweepRecord, TrialRecord
    from raymlops.tuning.sweep_stores import SweepStores


def folder_of(spec: ProjectSpec, sweep_id: str) -> str:
    """Return the folder of a sweep's files."""
    return join(spec.storage.path, SWEEPS, sweep_id)


def write_best(stores: SweepStores, best: TrialRecord) -> str:
    """Write the winner's whole configuration, which ``train`` takes, into the sweep's folder and its run.

    Raises:
        StorageError, TrackingError: it cannot be written.
    """
    project, parent, metric = stores.project, stores.parent, stores.trials.objectives[0].metric
    header = (
        f"# Trial {best.number} of sweep {parent.sweep_id}: {metric} = {best.value:.6g} "
        f"after {best.epochs} epochs ({best.status}).\n"
    )
    text = header + dump(project.with_params(best.params).spec)
    uri = join(folder_of(project.spec, parent.sweep_id), "best.yaml")
    write_bytes(uri, text.encode())
    parent.tracker.log_text(parent.sweep_id, text, "config/best.yaml")
    return uri


def write_report(
    stores: SweepStores,
    records: Sequence[TrialRecord],
    *,
    best: TrialRecord | None,
    spent: SpentRecord,
    stopped: str,
) -> str:
    """Write the HTML report into the sweep's folder, and return its URI, which the sweep's run has as a tag."""
    from raymlops.tuning.reporting.report import html

    project = stores.project
    config = "" if best is None else dump(project.with_params(best.params).spec)
    text = html(stores, records, best=best, spent=spent, stopped=stopped, best_config_text=config)
    uri = join(folder_of(project.spec, stores.parent.sweep_id), "report.html")
    write_bytes(uri, text.encode())
    return uri


def write_trials(stores: SweepStores) -> None:
    """Write all trials as JSON to the sweep's MLflow run.

    Raises:
        TrackingError: MLflow rejects it.
    """
    data = {
        "schema_version": SCHEMA_VERSION,
        **stores.trials.objectives[0].to_dict(),
        "trials": [record.to_dict() for record in stores.records()],
    }
    stores.parent.tracker.log_text(stores.parent.sweep_id, json.dumps(data, indent=1), "sweep/trials.json")


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
