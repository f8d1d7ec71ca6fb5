"""The Ray jobs of a retraining: training, the gate and the replay, each with an id that is derived from it.

Owns what a job is sent. It runs apart from the controller, which holds the credentials of the state and moves what is
live: the configuration is that of the champion, with the tracking and state of the controller's, and the code is that
of the champion's bundle, of which nothing is run here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

from raymlops.config.retrain import RetrainSection
from raymlops.config.stored import read_stored
from raymlops.errors import ClusterError, DataRefusedError, NotFoundError
from raymlops.lifecycle.loop.next_step import JobFound
from raymlops.lifecycle.loop.training_data import windowed

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.cluster.jobs import Jobs
    from raymlops.config.schema import ProjectSpec
    from raymlops.lifecycle.loop.next_step import Task
    from raymlops.state.loop import Retraining
    from raymlops.state.store import Deployment
    from raymlops.tracking.client import Tracker

RETRAINING, RETRAIN_OF = "raymlops.retraining", "raymlops.retrain_of"
"""Tags of the run of a retraining: its id, and the run of the champion that it is to replace."""
MAX_REASON = 2000


class StageJobs(Protocol):
    """What a retraining does apart from the controller, and how it is found again."""

    def find(self, submission_id: str) -> JobFound | None:
        """Return a job; None where the cluster does not know it."""

    def submit(self, task: Task, submission_id: str, one: Retraining, champion: Deployment) -> None:
        """Begin a job; do nothing where the cluster has one with this id."""

    def finished_run(self, one: Retraining) -> str | None:
        """Return the finished run of a retraining; None without one."""


class RayJobs:
    """Jobs of the cluster that the controller runs on."""

    def __init__(
        self, spec: ProjectSpec, *, jobs: Callable[[ProjectSpec], Jobs], tracker: Callable[[ProjectSpec], Tracker]
    ) -> None:
        """Take the controller's configuration."""
        self._spec = spec
        self._jobs = jobs
        self._tracker = tracker

    def find(self, submission_id: str) -> JobFound | None:
        """Return a job; None where the cluster does not know it.

        Raises:
            ClusterError: the cluster does not answer.
        """
        jobs = self._jobs(self._spec)
        try:
            state = jobs.state(submission_id)
        except NotFoundError:
            return None
        if not state.ended:
            return JobFound("running")
        if state.status == "SUCCEEDED":
            return JobFound("succeeded")
        error = jobs.failure(state, what="failed")
        # Of the refusals this one is of what does not change; a run that the attempt before still holds is free again.
        status: Literal["failed", "refused"] = "refused" if isinstance(error, DataRefusedError) else "failed"
        return JobFound(status, error.message[:MAX_REASON])

    def submit(self, task: Task, submission_id: str, one: Retraining, champion: Deployment) -> None:
        """Begin a job; do nothing where the cluster has one with this id.

        Raises:
            ClusterError: the cluster does not answer, or rejects the request.
            BundleError, StorageError: the champion's bundle cannot be read.
        """
        from raymlops.cluster.jobs import CONFIG, bundled_code, explicit, job_folder
        from raymlops.config.load import dump

        spec = explicit(job_spec(self._spec, one, champion), tags={RETRAINING: one.id, RETRAIN_OF: one.champion_run_id})
        jobs = self._jobs(self._spec)
        arguments = ["retraining-job", one.id, task, "--config", CONFIG, "--json"]
        with job_folder(dump(spec), code=bundled_code(champion.bundle)) as folder:
            try:
                jobs.submit(arguments, folder=folder, submission_id=submission_id)
            except ClusterError:
                if self.find(submission_id) is None:  # another controller submitted it just before
                    raise

    def finished_run(self, one: Retraining) -> str | None:
        """Return the finished run of a retraining; None without one.

        Raises:
            NotFoundError: the champion's run is gone.
            TrackingError: MLflow does not answer.
        """
        tracker = self._tracker(self._spec)
        tracker.check()  # one that is down is said within seconds, and holds up no other model
        of = tracker.run(one.champion_run_id).info.experiment_id  # where the job's run is too
        return newest_run(tracker, str(tracker.client.get_experiment(of).name), one.id, finished=True)


def newest_run(
    tracker: Tracker, experiment: str, retraining_id: str, *, finished: bool, kind: Literal["run", "sweep"] = "run"
) -> str | None:
    """Return the newest run, or sweep, with a retraining's tag, of those that are ``finished`` or of the others.

    Raises:
        TrackingError: MLflow does not answer.
    """
    from raymlops.training.runs.lookup import runs_tagged

    found = runs_tagged(tracker, experiment, {RETRAINING: retraining_id, "raymlops.kind": kind})
    mine = (run for run in found if (run.info.status == "FINISHED") == finished)
    return next((str(run.info.run_id) for run in mine), None)


def job_spec(here: ProjectSpec, one: Retraining, champion: Deployment) -> ProjectSpec:
    """Return the champion's configuration, with its settings as deployed, on the cluster and MLflow of ``here``.

    It is trained on the window of the retraining where that is of the recipe's rows, and starts from the champion's
    weights where that says so. What its gate tests on is later than what it is trained on, unless the champion's
    configuration says otherwise.

    Raises:
        BundleError: the bundle is not what its digest vouches for.
        ConfigError: this release cannot read its configuration.
        StorageError: the storage cannot be read.
    """
    from ruamel.yaml import YAML

    from raymlops.bundle.verify import CONFIG, BundleFiles
    from raymlops.config.load import load_data
    from raymlops.storage.filesystem import root_of

    text = BundleFiles(champion.bundle.uri, champion.bundle.digest).read(CONFIG).decode()
    data: dict[str, Any] = YAML(typ="safe").load(text)
    ours = here.to_dict()
    experiment = data.get("tracking", {}).get("experiment")
    data |= {key: ours[key] for key in ("tracking", "storage", "cluster")}
    data["tracking"] = {**data["tracking"], "experiment": experiment}
    data["storage"] = {**data["storage"], "path": root_of(champion.bundle.uri)}
    data["cluster"] = {**data["cluster"], "address": None}  # Ray tells a job its cluster
    data |= {key: getattr(champion, key) for key in ("serve", "monitor", "retrain") if getattr(champion, key)}
    data["gate"] = {"later_rows": True} | {
        key: value for key, value in data.get("gate", {}).items() if value is not None
    }
    unset = {"window": {"start": None, "stop": None}, "tables": None}  # of an earlier retraining
    data["train"] = {**data["train"], **unset, **windowed(one)}
    if read_stored(RetrainSection, one.settings).start == "champion":
        data["train"]["init_from"] = f"{champion.bundle.uri}#{champion.bundle.digest}"
    return load_data(data).spec
