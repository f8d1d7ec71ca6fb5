"""A trial on several workers: Ray Train's, started and watched as those of any run, from the trial's own process.

Owns where such a trial's files are, and how its workers' events become epochs. It has no MLflow run of its own to
write: the sweep's driver does that. Knows nothing of Ray Tune.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from raymlops.cluster.capacity import Places
from raymlops.training.preflight import has_unused_parameters
from raymlops.training.runs.lookup import Place
from raymlops.training.supervision import supervisor
from raymlops.training.supervision.request import RunRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raymlops.data.prepare import Prepared
    from raymlops.project import Project
    from raymlops.records import MetricPoint
    from raymlops.training.events import Event
    from raymlops.training.loop.context import Outcome

    OnEpoch = Callable[..., bool]

_SHORTEST_MINUTES = 1 / 600


class EpochWriter:
    """Takes in what ``supervise`` says and passes on each epoch once, however often the workers began again."""

    def __init__(self, on_epoch: OnEpoch, *, after: int = 0) -> None:
        """Pass on what comes after epoch ``after``."""
        self._on_epoch = on_epoch
        self._known = set(range(1, after + 1))

    def __call__(self, event: Event) -> None:
        """Pass on an epoch."""
        if event.kind == "epoch":
            self._pass_on(event.epoch, dict(event.metrics), step=event.step)

    def catch_up(self, points: Sequence[MetricPoint]) -> int:
        """Leave out what a checkpoint holds: the epochs in it come from the history, at the end."""
        del points
        return 0

    def note_restart(self, reason: str, *, step: int, workers: int) -> None:
        """Leave out restarts."""

    def close(self, outcome: Outcome) -> None:
        """Pass on the epochs whose events were lost with the box that they were in."""
        for number, metrics in enumerate(outcome.history, start=1):
            self._pass_on(number, dict(metrics), step=outcome.steps)

    def _pass_on(self, number: int, metrics: dict[str, Any], *, step: int) -> None:
        if number not in self._known:
            self._known.add(number)
            self._on_epoch(number, metrics, step=step)


def train_on_workers(
    project: Project, prepared: Prepared, *, folder: str, after: int, on_epoch: OnEpoch, stopping: Callable[[], bool]
) -> None:
    """Train on ``sweep.workers_per_trial`` workers; it goes on from the newest checkpoint under ``folder``.

    ``after`` is the number of epochs that are known. Once ``stopping`` is true, the workers write a last checkpoint and
    end; nothing is raised then.

    Raises:
        RaymlopsError: as ``supervise.fit``.
    """
    spec = project.spec
    section = spec.train.model_copy(
        update={
            "num_workers": spec.sweep.workers_per_trial,
            "checkpoint_every_epochs": spec.train.epochs,
            "checkpoint_every_steps": None,
            "checkpoint_every_minutes": max(spec.sweep.checkpoint_every_s / 60, _SHORTEST_MINUTES),
            "keep_checkpoints": 1,
            "keep_best": 1,
        }
    )
    nested = replace(project, spec=spec.model_copy(update={"train": section}))
    room = Places(
        cpus_per_worker=section.cpus_per_worker, gpus_per_worker=section.gpus_per_worker, purpose="a trial's workers"
    )
    writer = EpochWriter(on_epoch, after=after)
    try:
        outcome, _ = supervisor.fit(
            RunRequest(
                nested,
                prepared,
                place_of(folder),
                writer,
                unused_parameters=has_unused_parameters(nested, prepared),
                room=room,
                stop=lambda: "interrupted" if stopping() else "",
            )
        )
    except KeyboardInterrupt:
        if not stopping():
            raise
    else:
        writer.close(outcome)


def place_of(folder: str) -> Place:
    """Return a trial's folder as the place of a run: checkpoints below it, as every trial's are."""
    base, mark, query = folder.partition("?")
    parent, _, name = base.rstrip("/").rpartition("/")
    return Place(parent + mark + query, name)
