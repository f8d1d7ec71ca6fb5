"""Create the MLflow run of a training or a sweep: configuration, data, code, packages, hardware.

What is logged later is its writer's responsibility. Knows nothing of workers.
"""

from __future__ import annotations

import inspect
import json
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raymlops.bundle.code import collect
from raymlops.config.load import dump
from raymlops.errors import RecipeError
from raymlops.signals import undisturbed
from raymlops.storage.filesystem import absolute
from raymlops.tracking.params import flatten
from raymlops.tracking.provenance import git_record, hardware, packages
from raymlops.training.runs.writer import RunWriter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.bundle.code import Code
    from raymlops.config.schema import ProjectSpec
    from raymlops.project import Project
    from raymlops.records import DataRecord
    from raymlops.tracking.client import Tracker

CONFIG = "config/resolved.yaml"
CODE_FILES = "code/files.json"
"""Artifacts: the whole configuration, and a digest of each file of the recipe's code."""
CODE_LEFT_OUT = "code/left_out.json"
"""Artifact: the files beside the recipe's code that do not travel with it."""
PACKAGES = "environment/packages.txt"
"""Artifact: every installed distribution with its version, as pip writes them."""
CODE_SHA = "raymlops.code_sha"
"""Tag: the digest of the recipe's code."""
FINGERPRINT, ROWS = "raymlops.data_fingerprint", "raymlops.data_rows"
"""Tags: what identifies the data, and the rows of each split as JSON."""
TABLES = "raymlops.data_tables"
"""Tag: the splits that are Delta tables, as JSON, each with the name and version that reads it again."""
STORAGE_PATH = "raymlops.storage_path"
"""Tag: ``storage.path`` as an absolute folder, for processes with another working directory."""
CWD = "raymlops.cwd"
"""Tag: the folder that the run was started in, which may hold a recipe that belongs to no package."""


def open_run(
    tracker: Tracker,
    project: Project,
    data: DataRecord,
    *,
    code: Code | None = None,
    tags: Mapping[str, str] | None = None,
    kind: Literal["run", "sweep"] = "run",
) -> str:
    """Create the run with everything that is known before training. ``code`` is the recipe's, if it is known.

    If that fails or is interrupted half-way, the run is ended before the error is raised.

    Raises:
        TrackingError: MLflow does not accept it.
    """
    spec = project.spec
    code_tags, code_files = code_record(project, code=code)
    machine, installed = hardware(), packages()
    all_tags = {
        **spec.project.tags,
        **(tags or {}),
        "raymlops.kind": kind,
        "raymlops.project": spec.project.name,
        STORAGE_PATH: absolute(spec.storage.path),
        "raymlops.recipe": project.reference,
        "raymlops.config_sha": spec.sha(),
        FINGERPRINT: data.fingerprint,
        ROWS: json.dumps(data.rows),
        TABLES: json.dumps(data.tables) if data.tables else "",
        **code_tags,
        "raymlops.num_workers": json.dumps(spec.train.num_workers),
        "raymlops.version": installed.get("raymlops", ""),
        "raymlops.torch": installed.get("torch", ""),
        "raymlops.python": platform.python_version(),
        "raymlops.host": machine["host"],
        CWD: str(Path.cwd()),
        "mlflow.source.name": project.reference,
        "mlflow.source.git.commit": code_tags["raymlops.git_commit"],
    }
    artifacts = {
        CONFIG: dump(spec),
        **code_files,
        PACKAGES: "".join(f"{name}=={version}\n" for name, version in installed.items()),
        "environment/hardware.json": _json(machine),
        "data/fingerprint.json": _json(data.to_dict()),
    }
    run_id = ""
    try:
        # An interrupt between the run's creation and the answer with its id would leave it RUNNING for ever.
        with undisturbed():
            run_id = tracker.start_run(
                spec.experiment,
                name=f"{spec.project.name}-{'' if kind == 'run' else kind + '-'}{time.strftime('%Y%m%d-%H%M%S')}",
                tags={key: value for key, value in all_tags.items() if value},
            )
        tracker.log_batch(run_id, params=parameters(spec, fingerprint=data.fingerprint, rows=data.rows, kind=kind))
        for path, text in artifacts.items():
            if text:
                tracker.log_text(run_id, text, path)
    except BaseException as error:
        if run_id:
            RunWriter(tracker, run_id).close_failed(error)
        raise
    return run_id


def code_record(project: Project, *, code: Code | None = None) -> tuple[dict[str, str], dict[str, str]]:
    """Return the tags and the artifacts that describe the code that a bundle would hold; empty texts where unknown."""
    code, source = code or code_of(project), Path(inspect.getfile(project.recipe_class))
    files = code.files if code else {}
    git = git_record(
        source,
        files or {source.name: source.read_bytes()},
        with_diff=project.spec.tracking.git_diff,
    )
    tags = {
        CODE_SHA: code.sha() if code else "",
        "raymlops.git_commit": git.commit,
        "raymlops.git_branch": git.branch,
        "raymlops.git_dirty": str(git.dirty).lower(),
    }
    diff = git.diff and git.diff + "\n"
    lists = {CODE_FILES: _json(code.digests()), CODE_LEFT_OUT: _json(code.left_out)} if code else {CODE_FILES: ""}
    return tags, {**lists, "code/uncommitted.diff": diff}


def code_of(project: Project) -> Code | None:
    """Return the code that a bundle would hold; None where it cannot be collected."""
    try:
        return collect(project.recipe_class)
    except RecipeError:
        return None


def parameters(spec: ProjectSpec, *, fingerprint: str, rows: Mapping[str, int], kind: str = "run") -> dict[str, str]:
    """Return what shapes a result, as MLflow parameters; where it runs and how it is served is in ``CONFIG`` alone."""
    sections = ("recipe", "train", "sweep") if kind == "sweep" else ("recipe", "train")
    settings = spec.to_dict()
    shape = {name: settings[name] for name in sections}
    return flatten({**shape, "data": {"fingerprint": fingerprint, "rows": rows}})


def _json(data: Any) -> str:
    return json.dumps(data, indent=2, sort_keys=True)
