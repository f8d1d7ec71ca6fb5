"""``sweep``: the cluster connected, its size checked, the trials run, the record returned; new, resumed or forked.

Knows the order of the steps; each step is another room's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.errors import RefusedError, UsageError
from raymlops.lifecycle.shared_storage import check_sharing
from raymlops.lifecycle.sources import Source, known_tracker, project_of
from raymlops.lifecycle.train import OnEvent, as_recorded, shown

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

    ``resume`` is the id of a sweep that goes on, however it was stopped: finished trials stay, the others go on from
    their checkpoints. Without a ``source`` its own configuration is taken. ``extend`` has entries such as
    ``num_trials=+20`` or ``timeout_s=+3600``. ``fork`` is the id of a sweep whose trials a new one, with another space,
    knows from the start, where they fit; without a ``source`` it has that sweep's configuration with ``overrides``.

    Raises:
        ConfigError, RecipeError, StorageError, InsufficientResourcesError: before any trial starts.
        UsageError: no source, resume or fork; a changed space, metric or anything else that makes trials incomparable;
            nothing left to do; or the cluster has several machines, and files or tables are where one of them alone can
            reach them.
        NotFoundError: there is no such sweep.
        RefusedError: another driver runs it now; the message says who.
        TrackingError, ClusterError: MLflow or Ray do not answer.
        SweepError: no trial finished; the message says how each failed.
    """
    from raymlops.cluster.capacity import check_fits
    from raymlops.cluster.connect import connect
    from raymlops.tuning.checks import check
    from raymlops.tuning.reporting.progress import display
    from raymlops.tuning.sweep import sweep

    project, forked = _project(
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
        with shown(on_event, display) as emit:
            return sweep(project, resume=resume, fork=forked, tags=tags, on_event=emit)


def check_ways(*, resume: str | None, fork: str | None, extend: Sequence[str]) -> None:
    """Refuse ways to begin a sweep that do not go together.

    Raises:
        UsageError: a sweep to resume and one to fork, or something to extend without a sweep to resume.
    """
    if resume is not None and fork is not None:
        raise UsageError("a sweep goes on or is forked, not both", hint="Leave --resume or --fork out.")
    if extend and resume is None:
        raise UsageError("--extend goes with a sweep to extend", hint="raymlops sweep --resume SWEEP_ID --extend ...")


def _project(
    source: Source | None,
    *,
    resume: str | None,
    extend: Sequence[str],
    fork: str | None,
    overrides: Sequence[str],
    env: str | None,
    recipe: type | str | None,
) -> tuple[Project, Recorded | None]:
    """Return the project, and the sweep that it forks; what can be refused is, before a cluster is connected."""
    from raymlops.config.changes import extended, refuse_sweep_changes, sweep_changes

    check_ways(resume=resume, fork=fork, extend=extend)
    if resume is None and fork is None:
        if source is None:
            raise UsageError("there is nothing to search", hint="Give a configuration, or resume=SWEEP_ID.")
        return project_of(source, overrides=overrides, env=env, recipe=recipe), None
    if source is None and env is not None:
        raise UsageError(
            "--env NAME lays a file over the one that --config names, and there is none",
            hint="Give --config FILE too, or KEY.PATH=VALUE for what is to change.",
        )
    sweep_id = resume or fork or ""
    recorded = _recorded(source, sweep_id, overrides=overrides, env=env, free=resume is not None)
    assert recorded.spec is not None
    longer = extended(recorded.spec.to_dict(), extend)
    if source is None:
        project = as_recorded(recorded, overrides=[*overrides, *longer], recipe=recipe)
    else:
        project = project_of(source, overrides=[*overrides, *longer], env=env, recipe=recipe)
    if resume is not None:
        refuse_sweep_changes(sweep_changes(recorded.spec, project.spec), sweep_id=sweep_id)
    return project, None if fork is None else recorded


def _recorded(
    source: Source | None, sweep_id: str, *, overrides: Sequence[str], env: str | None, free: bool
) -> Recorded:
    """Return a sweep that MLflow knows; with ``free``, one that nobody runs now."""
    from raymlops.training.runs.lookup import who_holds
    from raymlops.tuning.mlflow.sweep_run import sweep_of

    recorded = sweep_of(known_tracker(source, overrides=overrides, env=env), sweep_id)
    if free:
        held, who = who_holds(recorded)
        if held == "held":
            raise RefusedError(
                f"the sweep {sweep_id} is in use by {who}", hint="Let it finish, or end that process, then resume it."
            )
    return recorded
