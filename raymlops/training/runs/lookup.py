"""Look up a run by its id: its MLflow record, the configuration that it stored, and the location of its files.

Owns the search and its error messages. Imports no recipe. Knows nothing of what its callers do with a run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from raymlops.config.messages import check
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
from raymlops.training.runs.mlflow_run import CONFIG, STORAGE_PATH

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.tracking.client import Tracker

Lease = tuple[Literal["held", "free", "unknown"], str]
"""Whether a process holds the lease of a run, and which one, or why that is unknown."""

RUNS = "runs"
"""Folder of all runs under ``storage.path``; each run has a folder in it, with its checkpoints and its log."""
SWEEPS = "sweeps"
"""Folder of all sweeps under ``storage.path``; each sweep has a folder in it, with its configuration and its report."""
TRIALS = "trials"
"""Folder of a sweep's trials; each has a folder in it, with its checkpoints while it has not ended."""
CHECKPOINTS = "checkpoints"
LOG = "log.txt"
EVALUATION = "evaluation/test.json"
"""Artifact: the test metrics of a run, written once."""
AT_END = "evaluation/at_end.json"
"""Artifact: the test metrics of the weights that a run keeps, as its workers have them at the end."""
BEST = "raymlops.best."
"""Begins the tag of each metric of the model that is kept."""
ORIGIN = "origin.json"
"""File in a run's folder: the URI of the MLflow that has the run."""
_NEAR = 3
_SEARCHED = 1000


@dataclass(frozen=True)
class Recorded:
    """A run as MLflow has it.

    ``spec`` is the configuration that it was started or last resumed with; its ``storage.path`` is absolute.
    """

    run_id: str
    name: str
    kind: str
    """``run``, ``sweep`` or ``trial``; empty for a run that raymlops did not create."""
    status: str
    """MLflow's status: RUNNING, FINISHED, FAILED or KILLED."""
    started_ms: int
    ended_ms: int | None
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    """The latest value of each."""
    deleted: bool
    spec: ProjectSpec | None
    """None if the run stored none, or it cannot be read."""

    @property
    def best_metrics(self) -> dict[str, float]:
        """Return the metrics of the model that is kept, which are known at a run's end; empty before."""
        texts = {name.removeprefix(BEST): text for name, text in self.tags.items() if name.startswith(BEST)}
        return {name: float(text) for name, text in texts.items()}

    @property
    def files_uri(self) -> str | None:
        """Return the folder of its checkpoints and its log; None if it is unknown."""
        return None if self.spec is None else filesystem.join(self.spec.storage.path, RUNS, self.run_id)


def look_up(tracker: Tracker, run_id: str) -> Recorded:
    """Return the run that a user named.

    Raises:
        NotFoundError: it does not exist, or was deleted; the message names similar ones.
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


def check_kind(recorded: Recorded, kind: Literal["run", "sweep"]) -> None:
    """Refuse a run of another kind.

    Raises:
        UsageError: it is another kind of run, was not created by raymlops, or has no readable configuration.
    """
    name, verbs = f"{recorded.run_id} ({recorded.name})", {"run": "train", "sweep": "sweep"}
    if recorded.kind == kind and recorded.spec is None:
        raise UsageError(
            f"{kind} {name} has no configuration {CONFIG} that can be read: it ended while it was being created",
            hint=f"Start a new {kind}: raymlops {verbs[kind]} --config FILE.",
        )
    if recorded.kind == kind:
        return
    if not recorded.kind:
        raise UsageError(f"{name} was not created by raymlops: it has no tag raymlops.kind")
    if recorded.kind == "trial":
        sweep_id = recorded.tags.get("mlflow.parentRunId", "SWEEP_ID")
        raise UsageError(
            f"{name} is a trial of the sweep {sweep_id}, not a {kind}",
            hint=f"To resume its sweep: raymlops sweep --resume {sweep_id}",
        )
    raise UsageError(
        f"{name} is a {recorded.kind}, not a {kind}",
        hint=f"To resume it: raymlops {verbs.get(recorded.kind, 'train')} --resume {recorded.run_id}",
    )


def read_json(tracker: Tracker, run_id: str, path: str) -> Any:
    """Return the content of a JSON artifact; None if it does not exist."""
    try:
        return json.loads(tracker.read_text(run_id, path))
    except NotFoundError:
        return None


def find(tracker: Tracker, run_id: str) -> Recorded:
    """Return a run, even a deleted one.

    Raises:
        NotFoundError: it does not exist.
        TrackingError: MLflow does not answer.
    """
    try:
        recorded = of_mlflow(tracker.run(run_id))
    except TrackingError as error:
        # MLflow calls an id that it cannot even parse an invalid parameter.
        if getattr(error.__cause__, "error_code", "") != "INVALID_PARAMETER_VALUE":
            raise
        shown = run_id if len(run_id) <= 80 else f"{run_id[:77]}..."
        raise NotFoundError(f"{shown!r} is not a run id") from error
    return replace(recorded, spec=_spec(tracker, recorded)) if recorded.kind else recorded


def of_mlflow(run: Any) -> Recorded:
    """Convert MLflow's ``Run``, without the configuration, which is an artifact."""
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


def runs_tagged(tracker: Tracker, experiment: str, tags: Mapping[str, str]) -> list[Any]:
    """Return the runs of an experiment that carry all these tags, the newest first.

    Raises:
        TrackingError: MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    wanted = " AND ".join(f"tags.`{name}` = '{text}'" for name, text in tags.items())
    try:
        found = tracker.client.get_experiment_by_name(experiment)
        if found is None:
            return []
        return list(tracker.client.search_runs([found.experiment_id], wanted, max_results=100))
    except MlflowException as error:
        raise TrackingError(f"MLflow at {tracker.shown_uri} cannot be searched: {error}") from error


def who_holds(recorded: Recorded) -> Lease:
    """Return whether a run's lease is held, and by whom, or why that is unknown."""
    if recorded.spec is None:
        return "unknown", f"it has no {CONFIG}, which says where its lease would be"
    runs_on = recorded.tags.get("raymlops.host", "another machine") if recorded.status == "RUNNING" else None
    return who_holds_in(recorded.spec, recorded.run_id, runs_on=runs_on)


def who_holds_in(spec: ProjectSpec, run_id: str, *, runs_on: str | None = None) -> Lease:
    """Return whether a lease is held in the state of ``spec``, and by whom, or why that is unknown.

    It is unknown too if the run is said to run on a machine, and was never held here.
    """
    try:
        url = state_url(spec)
        if (holder := holder_of(url, run_id)) is not None:
            return "held", holder
        if runs_on is not None and not was_held(url, run_id):
            return "unknown", f"its lease is not kept here; it was started on {runs_on}"
    except (UsageError, StorageError, UnreachableError) as error:
        return "unknown", f"its lease cannot be read: {error.message}"
    return "free", ""


def mark_origin(files_uri: str, tracker: Tracker) -> None:
    """Write the URI of MLflow into a run's folder, so that garbage collection consults no other MLflow about it.

    Raises:
        StorageError: it cannot be written.
    """
    data = json.dumps({"format_version": 1, "tracking_uri": tracker.shown_uri})
    filesystem.write_bytes(filesystem.join(files_uri, ORIGIN), data.encode())


def origin(files_uri: str) -> str | None:
    """Return the URI of the MLflow that has the run of a folder; None if it is unknown."""
    try:
        return str(json.loads(filesystem.read_bytes(filesystem.join(files_uri, ORIGIN)))["tracking_uri"])
    except (NotFoundError, StorageError, ValueError, KeyError, TypeError):
        return None


def resume_command(verb: Literal["train", "sweep"], run_id: str, *, spec: ProjectSpec) -> str:
    """Return the command that resumes a run or a sweep from any folder of this machine."""
    command, default = f"raymlops {verb} --resume {run_id}", StorageSection().path
    path = filesystem.absolute(spec.storage.path)
    if path != filesystem.absolute(default):
        command += f" storage.path={path}"
    # A URI from an environment variable is taken from there again.
    if isinstance(spec.tracking.uri, str):
        command += f" tracking.uri={spec.tracking.uri}"
    return command


def read_config(text: str) -> ProjectSpec:
    """Return the configuration that a run stored; keys of other versions of raymlops are ignored.

    Raises:
        ConfigError: it cannot be read.
    """
    from ruamel.yaml.error import YAMLError

    try:
        data = _parsed(text)
    except YAMLError as error:
        raise ConfigError([Problem("", f"is not valid YAML: {error}", CONFIG)]) from error
    spec, findings = check(ProjectSpec, data if isinstance(data, dict) else {}, lenient=True)
    if spec is None:
        raise ConfigError([Problem(".".join(map(str, found.path)), found.message, CONFIG) for found in findings])
    return spec


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    """Read a text once in a process, which asks for one run's again and again: it takes a twentieth of a second."""
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(text)


def _spec(tracker: Tracker, recorded: Recorded) -> ProjectSpec | None:
    try:
        spec = read_config(tracker.read_text(recorded.run_id, CONFIG))
    except (NotFoundError, ConfigError):
        return None
    # A relative path is relative to the folder that the run was started in.
    path = recorded.tags.get(STORAGE_PATH, spec.storage.path)
    return spec.model_copy(update={"storage": spec.storage.model_copy(update={"path": path})})


_ELSEWHERE = "Is it in another MLflow? Name that with --config FILE, MLFLOW_TRACKING_URI or RAYMLOPS_HOME."


def _near(tracker: Tracker, run_id: str) -> str:
    """Return a sentence with the newest runs whose id or name is similar; empty without any."""
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
    return f"Similar: {', '.join(f'{known} ({by_id[known]})' for known in found)}." if found else ""
