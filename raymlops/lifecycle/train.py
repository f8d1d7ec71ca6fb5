"""Train one configuration, new or resumed.

Owns the order: connect to the cluster, check its size, train, return the record.
"""

from __future__ import annotations

import logging
import os
import platform
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from raymlops.config.load import load_data
from raymlops.display import OnEvent, shown
from raymlops.errors import RecipeImportError, RefusedError, UsageError
from raymlops.lifecycle.first_weights import located
from raymlops.lifecycle.shared_storage import check_sharing
from raymlops.lifecycle.sources import Source, known_tracker, project_of
from raymlops.project import bind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.cluster.capacity import Places
    from raymlops.project import Project
    from raymlops.records import RunRecord
    from raymlops.training.runs.lookup import Recorded

_log = logging.getLogger(__name__)


def train(
    source: Source | None = None,
    *,
    resume: str | None = None,
    overrides: Sequence[str] = (),
    env: str | None = None,
    recipe: type | str | None = None,
    on_event: OnEvent | None = None,
    tags: dict[str, str] | None = None,
) -> RunRecord:
    """Train one configuration, as one MLflow run, and return its record.

    ``resume`` is the id of an unfinished run, however it was stopped: it resumes from its newest checkpoint, and ends
    with the metrics that it would have had. Without a ``source`` its own configuration is used, with ``overrides`` for
    what may change; ``env`` needs a ``source``. ``train.num_workers: 0`` trains in this process and needs no cluster.
    ``on_event`` gets every progress event; by default they are shown on stderr, or in the notebook's cell. If it
    raises, it gets no more of them, and its error is raised once the training has ended.

    Raises:
        ConfigError, RecipeError, StorageError, InsufficientResourcesError: before any worker trains.
        UsageError: neither ``source`` nor ``resume`` is given, or ``env`` without a ``source``; the run to resume has
            other data or a configuration that would change its result; or files or tables that only one of several
            machines can reach.
        NotFoundError: the run to resume does not exist.
        RefusedError: another process trains it.
        TrackingError, ClusterError: MLflow or Ray do not answer.
        TrainingError: the training stopped without a result; its MLflow run says why.
    """
    from raymlops.cluster.grace_period import shortage
    from raymlops.training.run import train as run_training
    from raymlops.training.runs.lookup import check_kind, look_up
    from raymlops.training.runs.resume import check_resumable

    if resume is not None:
        recorded = look_up(known_tracker(source, overrides=overrides, env=env), resume)
        check_kind(recorded, "run")
        refuse_held(recorded)
        project = recorded_project(recorded, source, overrides=overrides, env=env, recipe=recipe)
        project = located(project, recorded=recorded)
        check_resumable(recorded, project.spec)
    elif source is None:
        raise UsageError("there is nothing to train", hint="Give a configuration, or resume=RUN_ID.")
    else:
        project = located(project_of(source, overrides=overrides, env=env, recipe=recipe))
    section = project.spec.train
    fewest, most = section.workers
    if (short := shortage(os.environ, grace_s=section.stop_grace_s)) is not None:
        _log.warning(short)
    with ExitStack() as stack:
        room = _connect(project, workers=fewest, stack=stack) if most > 0 else None
        emit = stack.enter_context(shown(on_event))
        return run_training(project, tags=tags, on_event=emit, resume=resume, room=room)


def _connect(project: Project, *, workers: int, stack: ExitStack) -> Places:
    """Connect to the cluster and check that it has room for ``workers``."""
    from raymlops.cluster.capacity import Places, check_fits
    from raymlops.cluster.connect import connect
    from raymlops.cluster.placement import WorkerRequest

    section = project.spec.train
    requested = WorkerRequest(workers, section.cpus_per_worker, section.gpus_per_worker, "train.num_workers")
    stack.enter_context(connect(project.spec))
    check_sharing(project.spec)
    check_fits(requested, wait_s=project.spec.cluster.wait_s)
    return Places(replace(requested, workers=1))


def refuse_held(recorded: Recorded) -> None:
    """Refuse to resume a run or a sweep that a process is running.

    Raises:
        RefusedError: naming the process.
    """
    from raymlops.training.runs.lookup import who_holds

    held, who = who_holds(recorded)
    if held == "held":
        what = "the sweep" if recorded.kind == "sweep" else "run"
        raise RefusedError(
            f"{what} {recorded.run_id} is in use by {who}", hint="Let it finish, or end that process, then resume it."
        )


def recorded_project(
    recorded: Recorded,
    source: Source | None = None,
    *,
    overrides: Sequence[str] = (),
    env: str | None = None,
    recipe: type | str | None = None,
) -> Project:
    """Return the project to resume a run or a sweep with: of a source, or else of its recorded configuration.

    Raises:
        RecipeImportError: its recipe cannot be imported here; the hint names the folder where it was started.
    """
    from raymlops.training.runs.mlflow_run import CWD

    if source is not None:
        return project_of(source, overrides=overrides, env=env, recipe=recipe)
    assert recorded.spec is not None
    try:
        return bind(load_data(recorded.spec.to_dict(), overrides=overrides), recipe=recipe)
    except RecipeImportError as error:
        folder, host = recorded.tags.get(CWD, ""), recorded.tags.get("raymlops.host", "")
        if recipe is not None or folder in {"", str(Path.cwd())}:
            raise
        where = folder if host in {"", platform.node()} else f"{folder} on {host}"
        raise RecipeImportError(
            error.message,
            hint=f"The run was started in {where}: resume it from there, or put that folder on PYTHONPATH.",
        ) from error
