"""A run by its id: what MLflow says of it, the configuration that it wrote down, and where its files are.

Owns finding it, and what is said where it is not found. Imports no recipe. Knows nothing of what a run is wanted for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

from raymlops.config.messages import check
from raymlops.config.paths import local_path
from raymlops.config.schema import ProjectSpec, StorageSection
from raymlops.errors import (
    ConfigError,
    NotFoundError,
    Problem,
    StorageError,
    TrackingError,
    UnreachableError,
    UsageError,
)
from raymlops.state.database import state_url
from raymlops.state.lease import holder_of, was_held
from raymlops.storage import filesystem
from raymlops.training.runs.mlflow_run import CONFIG

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.tracking.client import Tracker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.tracking.client import Tracker

RUNS = "runs"
"""Folder of all runs under ``storage.path``, in each run's own folder its checkpoints and its log."""
CHECKPOINTS = "checkpoints"
LOG = "log.txt"
EVALUATION = "evaluation/test.json"
"""Artifact of a run: its test metrics, written once."""
STORAGE_PATH = "raymlops.storage_path"
"""Tag: ``storage.path`` as an absolute folder, for whoever stands in another one."""
ORIGIN = "origin.json"
"""File in a run's folder: which MLflow the run is in."""
_NEAR = 3
_SEARCHED = 1000


@dataclass(frozen=True)
class Recorded:
    """A run, as MLflow knows it.

    ``spec`` is the configuration that it was started with, or last gone on with; ``storage.path`` absolute in it.
    """

    run_id: str
    name: str
    kind: str
    """``run``, ``sweep`` or ``trial``; empty for a run that raymlops did not make."""
    status: str
    """MLflow's word: RUNNING, FINISHED, FAILED or KILLED."""
    started_ms: int
    ended_ms: int | None
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    """The newest value of each."""
    deleted: bool
    spec: ProjectSpec | None
    """None where the run wrote none, or one that cannot be read."""

    @property
    def files_uri(self) -> str | None:
        """Return the folder of its checkpoints and its log; None where nothing says where that is."""
        return None if self.spec is None else filesystem.join(self.spec.storage.path, RUNS, self.run_id)


def look_up(tracker: Tracker, run_id: str) -> Recorded:
    """Return a run, for somebody who named it.

    Raises:
        NotFoundError: there is none, or it was deleted; the message names near ones.
        TrackingError: MLflow does not answer.
    """
    try:
        recorded = find(tracker, run_id)
    except NotFoundError as error:
        raise NotFoundError(error.message, hint=_near(tracker, run_id) or _ELSEWHERE) from error
    if recorded.deleted:
        raise NotFoundError(
            f"the run {run_id!r} in {tracker.shown_uri} was deleted", hint=f"mlflow runs restore --run-id {run_id}"
        )
    return recorded


def find(tracker: Tracker, run_id: str) -> Recorded:
    """Return a run, also a deleted one.

    Raises:
        NotFoundError: there is none.
        TrackingError: MLflow does not answer.
    """
    try:
        recorded = of_mlflow(tracker.run(run_id))
    except TrackingError as error:
        # MLflow calls an id that it cannot even parse an invalid parameter.
        if getattr(error.__cause__, "error_code", "") != "INVALID_PARAMETER_VALUE":
            raise
        shown = run_id if len(run_id) <= 80 else f"{run_id[:77]}..."
        raise NotFoundError(f"{shown!r} is no run's id") from error
    return replace(recorded, spec=_spec(tracker, recorded)) if recorded.kind else recorded


def of_mlflow(run: Any) -> Recorded:
    """Return what MLflow's ``Run`` says, without the configuration, which is a file of its own."""
    tags = dict(run.data.tags)
    return Recorded(
        run_id=str(run.info.run_id),
        name=str(run.info.run_name or ""),
        kind=tags.get("raymlops.kind", ""),
        status=str(run.info.status),
        started_ms=int(run.info.start_time or 0),
        ended_ms=None if run.info.end_time is None else int(run.info.end_time),
        tags=tags,
        metrics=dict(run.data.metrics),
        deleted=run.info.lifecycle_stage != "active",
        spec=None,
    )


def who_holds(recorded: Recorded) -> tuple[Literal["held", "free", "unknown"], str]:
    """Return whether somebody trains a run now, and who it is, or why nobody can tell."""
    if recorded.spec is None:
        return "unknown", f"it has no {CONFIG}, which says where its lease would be"
    try:
        url = state_url(recorded.spec)
        if (holder := holder_of(url, recorded.run_id)) is not None:
            return "held", holder
        if recorded.status == "RUNNING" and not was_held(url, recorded.run_id):
            started_on = recorded.tags.get("raymlops.host", "another machine")
            return "unknown", f"its lease is not kept here; it was started on {started_on}"
    except (UsageError, StorageError, UnreachableError) as error:
        return "unknown", f"its lease cannot be asked for: {error.message}"
    return "free", ""


def mark_origin(files_uri: str, tracker: Tracker) -> None:
    """Write into a run's folder which MLflow it is in, so that another one is not asked what became of it.

    Raises:
        StorageError: it cannot be written.
    """
    data = json.dumps({"format_version": 1, "tracking_uri": tracker.shown_uri})
    filesystem.write_bytes(filesystem.join(files_uri, ORIGIN), data.encode())


def origin(files_uri: str) -> str | None:
    """Return which MLflow the run of a folder is in; None where nothing says so."""
    try:
        return str(json.loads(filesystem.read_bytes(filesystem.join(files_uri, ORIGIN)))["tracking_uri"])
    except (NotFoundError, StorageError, ValueError, KeyError, TypeError):
        return None


def absolute(storage_path: str) -> str:
    """Return a ``storage.path`` as it means the same from every folder."""
    folder = local_path(storage_path)
    return storage_path if folder is None else str(folder)


def go_on(verb: Literal["train", "sweep"], run_id: str, *, spec: ProjectSpec) -> str:
    """Return the command that goes on with a run or a sweep from any folder of this machine."""
    command, default = f"raymlops {verb} --resume {run_id}", StorageSection().path
    if absolute(spec.storage.path) != absolute(default):
        command += f" storage.path={absolute(spec.storage.path)}"
    # A URI that the environment names is found by the environment.
    if isinstance(spec.tracking.uri, str):
        command += f" tracking.uri={spec.tracking.uri}"
    return command


def read_config(text: str) -> ProjectSpec:
    """Return the configuration that a run wrote down; keys that another version of raymlops wrote are ignored.

    Raises:
        ConfigError: it cannot be read.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        data = YAML(typ="safe").load(text)
    except YAMLError as error:
        raise ConfigError([Problem("", f"is no YAML: {error}", CONFIG)]) from error
    spec, findings = check(ProjectSpec, data if isinstance(data, dict) else {}, lenient=True)
    if spec is None:
        raise ConfigError([Problem(".".join(map(str, found.path)), found.message, CONFIG) for found in findings])
    return spec


def _spec(tracker: Tracker, recorded: Recorded) -> ProjectSpec | None:
    try:
        spec = read_config(tracker.read_text(recorded.run_id, CONFIG))
    except (NotFoundError, ConfigError):
        return None
    # A relative path was meant from where the run was started.
    path = recorded.tags.get(STORAGE_PATH, spec.storage.path)
    return spec.model_copy(update={"storage": spec.storage.model_copy(update={"path": path})})


_ELSEWHERE = "Is it in another MLflow? Name that with --config FILE, MLFLOW_TRACKING_URI or RAYMLOPS_HOME."


def _near(tracker: Tracker, run_id: str) -> str:
    """Return a sentence with the newest runs whose id or name is like the one asked for; empty where none is."""
    client = tracker.client
    experiments = [found.experiment_id for found in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=_SEARCHED, order_by=["attributes.start_time DESC"])
    names: dict[str, Any] = {}
    for run in runs:
        names.setdefault(run.info.run_id, run)
        names.setdefault(str(run.info.run_name), run)
    begins = [name for name in names if run_id and name.startswith(run_id)]
    like = [*begins, *get_close_matches(run_id, names, n=_NEAR, cutoff=0.75)]
    found = list(dict.fromkeys(names[name].info.run_id for name in like))[:_NEAR]
    by_id = {run.info.run_id: run.info.run_name for run in runs}
    return f"Near: {', '.join(f'{known} ({by_id[known]})' for known in found)}." if found else ""


@dataclass(frozen=True)
class Place:
    """Where a run's files go: ``runs_uri`` is the folder of all runs."""

    runs_uri: str
    run_id: str

    @property
    def checkpoints_uri(self) -> str:
        """Return the folder of the run's checkpoints."""
        return filesystem.join(self.runs_uri, self.run_id, CHECKPOINTS)

    @property
    def log_uri(self) -> str:
        """Return the file of the run's log."""
        return filesystem.join(self.runs_uri, self.run_id, LOG)
