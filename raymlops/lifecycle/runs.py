"""``train`` and ``sweep``: the cluster connected, its size checked, the work done, the record returned.

Knows the order of the steps; each step is another room's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from raymlops.lifecycle.sharing import check_sharing
from raymlops.lifecycle.source import Source, project_of

if TYPE_CHECKING:
    from raymlops.records import RunRecord, SweepRecord

OnEvent = Callable[[Any], None]


def train(
    source: Source,
    *,
    overrides: Sequence[str] = (),
    env: str | None = None,
    recipe: type | str | None = None,
    on_event: OnEvent | None = None,
    tags: dict[str, str] | None = None,
) -> RunRecord:
    """Train one configuration, as one MLflow run, and return its record.

    ``train.num_workers: 0`` trains in this process and needs no cluster. ``on_event`` gets every
    progress event; by default they are shown on stderr, or in the notebook's cell.

    Raises:
        ConfigError, RecipeError, StorageError, InsufficientResourcesError: before any worker starts.
        UsageError: the cluster has several machines, and files or tables are where one of them alone can reach them.
        TrackingError, ClusterError: MLflow or Ray do not answer.
        TrainingError: the training stopped without a result; its MLflow run says so.
    """
    from raymlops.training.progress import display
    from raymlops.training.run import train as run_training

    project = project_of(source, overrides=overrides, env=env, recipe=recipe)
    section = project.spec.train
    if section.num_workers == 0:
        with _shown(on_event, display) as emit:
            return run_training(project, tags=tags, on_event=emit)
    from raymlops.cluster.capacity import check_fits
    from raymlops.cluster.connect import connect

    with connect(project.spec):
        check_sharing(project.spec)
        check_fits(
            workers=section.num_workers,
            cpus_per_worker=section.cpus_per_worker,
            gpus_per_worker=section.gpus_per_worker,
            purpose="train.num_workers",
            wait_s=project.spec.cluster.wait_s,
        )
        with _shown(on_event, display) as emit:
            return run_training(project, tags=tags, on_event=emit)


def sweep(
    source: Source,
    *,
    overrides: Sequence[str] = (),
    env: str | None = None,
    recipe: type | str | None = None,
    on_event: OnEvent | None = None,
    tags: dict[str, str] | None = None,
) -> SweepRecord:
    """Search ``sweep.space`` with Ray Tune and Optuna, and return every trial with the best one's configuration.

    Raises:
        ConfigError, RecipeError, StorageError, InsufficientResourcesError: before any trial starts.
        UsageError: the cluster has several machines, and files or tables are where one of them alone can reach them.
        TrackingError, ClusterError: MLflow or Ray do not answer.
        SweepError: no trial finished; the message says how each failed.
    """
    from raymlops.cluster.capacity import check_fits
    from raymlops.cluster.connect import connect
    from raymlops.tuning.checks import check
    from raymlops.tuning.progress import display
    from raymlops.tuning.study import sweep as run_sweep

    project = project_of(source, overrides=overrides, env=env, recipe=recipe)
    check(project)
    section = project.spec.train
    with connect(project.spec):
        check_sharing(project.spec)
        check_fits(
            workers=1,
            cpus_per_worker=section.cpus_per_worker,
            gpus_per_worker=section.gpus_per_worker,
            purpose="one trial",
            wait_s=project.spec.cluster.wait_s,
        )
        with _shown(on_event, display) as emit:
            return run_sweep(project, tags=tags, on_event=emit)


def _shown(on_event: OnEvent | None, display: Callable[[], Any]) -> AbstractContextManager[OnEvent]:
    """Return the caller's own sink, or for None a display that suits the terminal, notebook or log it is in."""
    return display() if on_event is None else nullcontext(on_event)
