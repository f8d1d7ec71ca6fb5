"""The MLflow run of a training: opened with all that is known before, and opened again to go on.

What happens in between is its writer's business, which is offered here too. Knows nothing of workers.
"""

from __future__ import annotations

import inspect
import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raymlops.bundle.code import collect
from raymlops.config.load import dump
from raymlops.errors import RecipeError
from raymlops.signals import undisturbed
from raymlops.tracking.params import flatten
from raymlops.tracking.provenance import git_record, hardware, packages
from raymlops.training.runs.writer import REASON, RunWriter, reason, status_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.bundle.code import Code
    from raymlops.project import Project
    from raymlops.records import DataRecord
    from raymlops.tracking.client import Tracker

__all__ = [
    "CODE_FILES",
    "CODE_SHA",
    "CONFIG",
    "CWD",
    "FINGERPRINT",
    "REASON",
    "ROWS",
    "ReopenedRun",
    "RunWriter",
    "code_of",
    "open_run",
    "reason",
    "reopen_run",
    "status_of",
]

CONFIG = "config/resolved.yaml"
CODE_FILES = "code/files.json"
"""Artifacts: the whole configuration, and a digest of each file of the recipe's code."""
CODE_SHA = "raymlops.code_sha"
"""Tag: the digest of the recipe's code."""
FINGERPRINT, ROWS = "raymlops.data_fingerprint", "raymlops.data_rows"
"""Tags: what identifies the data, and the rows of each split as JSON."""
CWD = "raymlops.cwd"
"""Tag: the folder that the run was started in, where a recipe may be that stands in no package."""


@dataclass(frozen=True)
class ReopenedRun:
    """A run that goes on: how it had ended, its tags, and the last step of each of its metrics."""

    run_id: str
    status: str
    """MLflow's word for it, before: RUNNING where its driver died without one."""
    tags: Mapping[str, str]
    last_steps: Mapping[str, int]


def open_run(
    tracker: Tracker,
    project: Project,
    data: DataRecord,
    *,
    tags: Mapping[str, str] | None = None,
    parent_run_id: str | None = None,
    kind: Literal["run", "sweep"] = "run",
) -> str:
    """Create the run with everything known before training: configuration, data, code, packages, hardware.

    One that cannot be filled, or whose filling is interrupted, is closed before the error goes on.

    Raises:
        TrackingError: MLflow does not take it.
    """
    spec = project.spec
    code = code_of(project)
    git = git_record(inspect.getfile(project.recipe_class))
    machine, installed = hardware(), packages()
    all_tags = {
        **spec.project.tags,
        **(tags or {}),
        "raymlops.kind": kind,
        "raymlops.project": spec.project.name,
        "raymlops.recipe": project.reference,
        "raymlops.config_sha": spec.sha(),
        FINGERPRINT: data.fingerprint,
        ROWS: json.dumps(data.rows),
        CODE_SHA: code.sha() if code else "",
        "raymlops.git_commit": git.commit,
        "raymlops.git_branch": git.branch,
        "raymlops.git_dirty": str(git.dirty).lower(),
        "raymlops.num_workers": json.dumps(spec.train.num_workers),
        "raymlops.version": installed.get("raymlops", ""),
        "raymlops.torch": installed.get("torch", ""),
        "raymlops.python": platform.python_version(),
        "raymlops.host": machine["host"],
        CWD: str(Path.cwd()),
        "mlflow.source.name": project.reference,
    }
    if git.commit:
        all_tags["mlflow.source.git.commit"] = git.commit
    artifacts = {
        CONFIG: dump(spec),
        CODE_FILES: _json(code.digests()) if code else "",
        "environment/packages.txt": "".join(f"{name}=={version}\n" for name, version in installed.items()),
        "environment/hardware.json": _json(machine),
        "data/fingerprint.json": _json(data.to_dict()),
        "code/uncommitted.diff": git.diff and git.diff + "\n",
    }
    run_id = ""
    try:
        # Between the server's making the run and our knowing its id an interrupt would leave it open for ever.
        with undisturbed():
            run_id = tracker.start_run(
                spec.experiment,
                name=f"{spec.project.name}-{'' if kind == 'run' else kind + '-'}{time.strftime('%Y%m%d-%H%M%S')}",
                tags={key: value for key, value in all_tags.items() if value},
                parent_run_id=parent_run_id,
            )
        tracker.log_params(run_id, flatten(spec.to_dict()))
        for path, text in artifacts.items():
            if text:
                tracker.log_text(run_id, text, path)
    except BaseException as error:
        if run_id:
            RunWriter(tracker, run_id).close_failed(error)
        raise
    return run_id


def reopen_run(tracker: Tracker, run_id: str) -> ReopenedRun:
    """Mark a run as RUNNING again and return what was written of it, which its next writer needs.

    Why it ended is taken back; when it ended stays in MLflow until it ends again.

    Raises:
        NotFoundError: there is no such run, or it was deleted.
        TrackingError: MLflow does not take it.
    """
    before = tracker.run(run_id)
    tracker.reopen_run(run_id, without_tags=[REASON])
    tags = {key: value for key, value in before.data.tags.items() if key != REASON}
    return ReopenedRun(run_id, str(before.info.status), tags, tracker.last_steps(run_id))


def code_of(project: Project) -> Code | None:
    """Return the code that would travel in a bundle now; None for code that cannot, of a run that goes on with it."""
    try:
        return collect(project.recipe_class)
    except RecipeError:
        return None


def _json(data: Any) -> str:
    return json.dumps(data, indent=2, sort_keys=True)
