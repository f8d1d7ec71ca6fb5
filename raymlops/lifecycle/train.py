"""``train``: the cluster connected, its size checked, the work done, the record returned.

Knows the order of the steps; each step is another room's.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymlops.config.load import load_data
from raymlops.errors import RecipeImportError, RefusedError, UsageError
from raymlops.lifecycle.shared_storage import check_sharing
from raymlops.lifecycle.sources import Source, known_tracker, project_of
from raymlops.project import bind

if TYPE_CHECKING:
    from raymlops.project import Project
    from raymlops.records import RunRecord
    from raymlops.training.runs.lookup import Recorded

_log = logging.getLogger(__name__)

OnEvent = Callable[[Any], None]


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

    ``resume`` is the id of a run that did not get to its end, however it was stopped: it goes on from its newest
    checkpoint, and ends with the numbers that it would have had. Without a ``source`` its own configuration is taken,
    with ``overrides`` for what may change; ``env`` needs a ``source``. ``train.num_workers: 0`` trains in this process
    and needs no cluster. ``on_event`` gets every progress event; by default they are shown on stderr, or in the
    notebook's cell.

    Raises:
        ConfigError, RecipeError, StorageError, InsufficientResourcesError: before any worker starts.
        UsageError: neither ``source`` nor ``resume`` is given, or ``env`` without a ``source``; the run has other data,
            or another configuration that would change its result; or the cluster has several machines, and files or
            tables are where one of them alone can reach them.
        NotFoundError: there is no such run to resume.
        RefusedError: somebody else trains it now.
        TrackingError, ClusterError: MLflow or Ray do not answer.
        TrainingError: the training stopped without a result; its MLflow run says so.
    """
    from raymlops.cluster.grace import shortage
    from raymlops.training.events import display
    from raymlops.training.run import train as run_training

    if source is None and env is not None:
        raise UsageError(
            "--env NAME lays a file over the one that --config names, and there is none"
            + ("" if resume is None else ": the run goes on with the configuration that it recorded"),
            hint="Give --config FILE too, or KEY.PATH=VALUE for what is to change.",
        )
    if resume is not None:
        project = _resumed(source, resume, overrides=overrides, env=env, recipe=recipe)
    elif source is None:
        raise UsageError("there is nothing to train", hint="Give a configuration, or resume=RUN_ID.")
    else:
        project = project_of(source, overrides=overrides, env=env, recipe=recipe)
    section = project.spec.train
    fewest, most = section.workers
    if (short := shortage(os.environ, grace_s=section.stop_grace_s)) is not None:
        _log.warning(short)
    if most == 0:
        with shown(on_event, display) as emit:
            return run_training(project, tags=tags, on_event=emit, resume=resume)
    from raymlops.cluster.capacity import Places, check_fits
    from raymlops.cluster.connect import connect

    each = {
        "cpus_per_worker": section.cpus_per_worker,
        "gpus_per_worker": section.gpus_per_worker,
        "purpose": "train.num_workers",
    }
    with connect(project.spec):
        check_sharing(project.spec)
        check_fits(workers=fewest, wait_s=project.spec.cluster.wait_s, **each)  # type: ignore[arg-type]
        with shown(on_event, display) as emit:
            room = Places(**each)  # type: ignore[arg-type]
            return run_training(project, tags=tags, on_event=emit, resume=resume, room=room)


def _resumed(
    source: Source | None, run_id: str, *, overrides: Sequence[str], env: str | None, recipe: type | str | None
) -> Project:
    """Return the project that a run goes on with; what can be refused at once is, before a cluster is connected."""
    from raymlops.training.runs.lookup import check_kind, look_up, who_holds
    from raymlops.training.runs.resume import check_resumable

    recorded = look_up(known_tracker(source, overrides=overrides, env=env), run_id)
    check_kind(recorded, "run")
    held, who = who_holds(recorded)
    if held == "held":
        raise RefusedError(
            f"run {run_id} is in use by {who}", hint="Let it finish, or end that process, then resume it."
        )
    if source is not None:
        project = project_of(source, overrides=overrides, env=env, recipe=recipe)
    else:
        project = as_recorded(recorded, overrides=overrides, recipe=recipe)
    check_resumable(recorded, project.spec)
    return project


def as_recorded(recorded: Recorded, *, overrides: Sequence[str], recipe: type | str | None) -> Project:
    """Return the project of a run's or a sweep's own configuration.

    Raises:
        RecipeImportError: its recipe is not found here; the message says where it was.
    """
    from raymlops.training.runs.mlflow_run import CWD

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


def shown(on_event: OnEvent | None, display: Callable[[], Any]) -> AbstractContextManager[OnEvent]:
    """Return the caller's own sink, or for None a display that suits the terminal, notebook or log it is in."""
    return display() if on_event is None else nullcontext(on_event)
