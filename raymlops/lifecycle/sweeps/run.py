"""What a sweep starts from, and how it runs in this process: new, resumed or forked.

Owns the order: connect to the cluster, check its size, run the trials, return the record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from raymlops.display import OnEvent, shown
from raymlops.errors import UsageError
from raymlops.lifecycle.first_weights import located
from raymlops.lifecycle.shared_storage import check_sharing
from raymlops.lifecycle.sources import Source, known_tracker, project_of
from raymlops.lifecycle.train import recorded_project, refuse_held

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.project import Project
    from raymlops.records import SweepRecord
    from raymlops.training.runs.lookup import Recorded


@dataclass(frozen=True)
class SweepRequest:
    """A sweep that can start: its project is checked, and what it resumes or forks exists."""

    project: Project
    resume: str | None = None
    """The id of the sweep to resume."""
    fork: Recorded | None = None
    """The sweep whose trials it starts from."""
    retry_failed: bool = False
    """Whether its failed trials are trained again."""


def sweep_request(
    source: Source | None,
    *,
    resume: str | None = None,
    extend: Sequence[str] = (),
    fork: str | None = None,
    retry_failed: bool = False,
    overrides: Sequence[str] = (),
    env: str | None = None,
    recipe: type | str | None = None,
) -> SweepRequest:
    """Resolve the arguments of ``rm.sweep``, and reject what can be rejected before a cluster is connected.

    ``resume`` is the id of a sweep to resume, however it was stopped: finished trials are kept, the others resume from
    their checkpoints. Without a ``source`` its own configuration is used. ``extend`` has entries such as
    ``num_trials=+20`` or ``timeout_s=+3600``. ``fork`` is the id of a sweep whose trials a new one, with another space,
    starts from, where they fit; without a ``source`` it has that sweep's configuration with ``overrides``.
    ``retry_failed`` trains the failed trials of a resumed sweep again.

    Raises:
        ConfigError, RecipeError: the configuration or its recipe.
        UsageError: no source, resume or fork; a changed space, metric or anything else that makes trials incomparable.
        NotFoundError: the sweep does not exist.
        RefusedError: another process runs it; the message names it.
        TrackingError: MLflow does not answer.
    """
    from raymlops.config.changes import extended, refuse_sweep_changes, sweep_changes
    from raymlops.tuning.checks import check
    from raymlops.tuning.mlflow.sweep_run import sweep_of

    if resume is not None and fork is not None:
        raise UsageError("a sweep is resumed or forked, not both", hint="Remove --resume or --fork.")
    if extend and resume is None:
        raise UsageError("--extend needs a sweep to extend", hint="raymlops sweep --resume SWEEP_ID --extend ...")
    if retry_failed and resume is None:
        raise UsageError(
            "--retry-failed needs a sweep to resume", hint="raymlops sweep --resume SWEEP_ID --retry-failed"
        )
    sweep_id = resume or fork
    recorded = None
    if sweep_id is not None:
        recorded = sweep_of(known_tracker(source, overrides=overrides, env=env), sweep_id)
        if resume is not None:
            refuse_held(recorded)
        assert recorded.spec is not None
        overrides = [*overrides, *extended(recorded.spec.to_dict(), extend)]
        project = recorded_project(recorded, source, overrides=overrides, env=env, recipe=recipe)
        project = located(project, recorded=None if resume is None else recorded)
        if resume is not None:
            refuse_sweep_changes(sweep_changes(recorded.spec, project.spec), sweep_id=sweep_id)
    elif source is not None:
        project = located(project_of(source, overrides=overrides, env=env, recipe=recipe))
    else:
        raise UsageError("there is nothing to search", hint="Give a configuration, or resume=SWEEP_ID.")
    check(project)
    return SweepRequest(project, resume, recorded if resume is None else None, retry_failed)


def run_sweep(
    request: SweepRequest, *, tags: dict[str, str] | None = None, on_event: OnEvent | None = None
) -> SweepRecord:
    """Search ``sweep.space`` with Ray Tune and Optuna, and return every trial with the best one's configuration.

    Raises:
        StorageError, InsufficientResourcesError: before any trial starts.
        UsageError: nothing left to do; or files or tables that only one of several machines can reach.
        RefusedError: another process runs the sweep to resume; the message names it.
        TrackingError, ClusterError: MLflow or Ray do not answer.
        SweepError: no trial finished; the message says how each failed.
    """
    from raymlops.cluster.capacity import check_fits
    from raymlops.cluster.connect import connect
    from raymlops.cluster.placement import WorkerRequest
    from raymlops.tuning.study.storage import optuna_url
    from raymlops.tuning.sweep import sweep

    spec = request.project.spec
    with connect(spec):
        check_sharing(spec, databases={"storage.optuna": optuna_url(spec)})
        each = spec.train.cpus_per_worker, spec.train.gpus_per_worker
        one = WorkerRequest(spec.sweep.workers_per_trial, *each, purpose="one trial")
        check_fits(one, wait_s=spec.cluster.wait_s, queues=True)
        with shown(on_event) as emit:
            return sweep(
                request.project,
                resume=request.resume,
                fork=request.fork,
                retry_failed=request.retry_failed,
                tags=tags,
                on_event=emit,
            )
