"""Run a sweep in this process: new, resumed or forked.

Owns the order: connect to the cluster, check its size, run the trials, return the record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.display import OnEvent, shown
from raymlops.errors import RefusedError, UsageError
from raymlops.lifecycle.shared_storage import check_sharing
from raymlops.lifecycle.sources import Source, known_tracker, project_of
from raymlops.lifecycle.train import as_recorded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.project import Project
    from raymlops.records import SweepRecord
    from raymlops.training.runs.lookup import Recorded


def run_sweep(
    source: Source | None = None,
    *,
    resume: str | None = None,
    extend: Sequence[str] = (),
    fork: str | None = None,
    overrides: Sequence[str] = (),
    env: str | None = None,
    recipe: type | str | None = None,
    on_event: OnEvent | None = None,
    tags: dict[str, str] | None = None,
) -> SweepRecord:
    """Search ``sweep.space`` with Ray Tune and Optuna, and return every trial with the best one's configuration.

    ``resume`` is the id of a sweep to resume, however it was stopped: finished trials stay, the others resume from
    their checkpoints. Without a ``source`` its own configuration is used. ``extend`` has entries such as
    ``num_trials=+20`` or ``timeout_s=+3600``. ``fork`` is the id of a sweep whose trials a new one, with another space,
    starts from, where they fit; without a ``source`` it has that sweep's configuration with ``overrides``.

    Raises:
        ConfigError, RecipeError, StorageError, InsufficientResourcesError: before any trial starts.
        UsageError: no source, resume or fork; a changed space, metric or anything else that makes trials incomparable;
            nothing left to do; or files or tables that only one of several machines can reach.
        NotFoundError: the sweep does not exist.
        RefusedError: another process runs it; the message names it.
        TrackingError, ClusterError: MLflow or Ray do not answer.
        SweepError: no trial finished; the message says how each failed.
    """
    from raymlops.cluster.capacity import check_fits
    from raymlops.cluster.connect import connect
    from raymlops.tuning.checks import check
    from raymlops.tuning.sweep import sweep

    project, forked = resolve(
        source, resume=resume, extend=extend, fork=fork, overrides=overrides, env=env, recipe=recipe
    )
    check(project)
    section = project.spec.train
    workers = project.spec.sweep.workers_per_trial
    with connect(project.spec):
        check_sharing(project.spec)
        check_fits(
            workers=workers,
            cpus_per_worker=section.cpus_per_worker,
            gpus_per_worker=section.gpus_per_worker,
            purpose="one trial",
            wait_s=project.spec.cluster.wait_s,
            queues=True,
        )
        with shown(on_event) as emit:
            return sweep(project, resume=resume, fork=forked, tags=tags, on_event=emit)


def resolve(
    source: Source | None,
    *,
    resume: str | None,
    extend: Sequence[str],
    fork: str | None,
    overrides: Sequence[str],
    env: str | None,
    recipe: type | str | None,
) -> tuple[Project, Recorded | None]:
    """Return the project of a sweep, and the sweep that it forks; rejects what it can before a cluster is connected.

    Raises:
        ConfigError, RecipeError, UsageError, NotFoundError, RefusedError: as ``run_sweep``.
    """
    from raymlops.config.changes import extended, refuse_sweep_changes, sweep_changes
    from raymlops.training.runs.lookup import who_holds
    from raymlops.tuning.mlflow.sweep_run import sweep_of

    if resume is not None and fork is not None:
        raise UsageError("a sweep is resumed or forked, not both", hint="Remove --resume or --fork.")
    if extend and resume is None:
        raise UsageError("--extend needs a sweep to extend", hint="raymlops sweep --resume SWEEP_ID --extend ...")
    sweep_id = resume or fork
    if sweep_id is None:
        if source is None:
            raise UsageError("there is nothing to search", hint="Give a configuration, or resume=SWEEP_ID.")
        return project_of(source, overrides=overrides, env=env, recipe=recipe), None
    recorded = sweep_of(known_tracker(source, overrides=overrides, env=env), sweep_id)
    held, who = who_holds(recorded)
    if resume is not None and held == "held":
        raise RefusedError(
            f"the sweep {sweep_id} is in use by {who}", hint="Let it finish, or end that process, then resume it."
        )
    assert recorded.spec is not None
    overrides = [*overrides, *extended(recorded.spec.to_dict(), extend)]
    if source is None:
        project = as_recorded(recorded, overrides=overrides, recipe=recipe)
    else:
        project = project_of(source, overrides=overrides, env=env, recipe=recipe)
    if resume is not None:
        refuse_sweep_changes(sweep_changes(recorded.spec, project.spec), sweep_id=sweep_id)
    return project, None if fork is None else recorded
