"""A trial on several Ray Train workers, supervised from the trial's own process like those of any run.

Owns the place of such a trial's files, and how its workers' events become epochs. The sweep's driver writes its MLflow
run. Knows nothing of Ray Tune.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray

from raymlops.cluster.capacity import Places
from raymlops.cluster.placement import WorkerRequest
from raymlops.errors import InsufficientResourcesError, PlacesLostError
from raymlops.training.preflight import has_unused_parameters
from raymlops.training.supervision import supervisor
from raymlops.training.supervision.request import RunRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from raymlops.data.prepare import Prepared
    from raymlops.project import Project
    from raymlops.training.events import Event
    from raymlops.training.loop.outcome import Outcome

    OnEpoch = Callable[..., bool]

_SHORTEST_MINUTES = 1 / 600
_ROUNDS = 3
"""How often to wait for Ray to place again what was lost with a node, ``cluster.wait_s`` each time."""


class EpochWriter:
    """The supervisor's writer: forwards each epoch once, however often the workers restart."""

    def __init__(self, on_epoch: OnEpoch, *, after: int = 0, ends_by_steps: bool = True) -> None:
        """Forward the epochs after ``after``; without ``ends_by_steps`` the last step says nothing of the end."""
        self._on_epoch = on_epoch
        self._known = set(range(1, after + 1))
        self._ends_by_steps = ends_by_steps

    def __call__(self, event: Event) -> None:
        """Forward an epoch."""
        if event.kind == "epoch":
            last = self._ends_by_steps and 0 < event.steps <= event.step
            self._forward(event.report, dict(event.metrics), step=event.step, last=last)

    def close(self, outcome: Outcome) -> None:
        """Forward the epochs whose events were lost with their mailbox."""
        for number, metrics in enumerate(outcome.history, start=1):
            self._forward(number, dict(metrics), step=outcome.steps, last=False)

    def _forward(self, number: int, metrics: dict[str, Any], *, step: int, last: bool) -> None:
        if number not in self._known:
            self._known.add(number)
            self._on_epoch(number, metrics, step=step, last=last)


def train_on_workers(
    project: Project, prepared: Prepared, *, folder: str, after: int, on_epoch: OnEpoch, stopping: Callable[[], bool]
) -> None:
    """Train on ``sweep.workers_per_trial`` workers, from the newest checkpoint under ``folder``.

    They are in the placement group of this process, so that Tune starts the trial once there is room for all.
    ``after`` is the number of known epochs. Once ``stopping`` is true, the workers write a last checkpoint and end, and
    nothing is raised.

    Raises:
        PlacesLostError: Ray has no places for workers whose node was lost.
        RaymlopsError: as ``supervisor.fit``.
    """
    spec = project.spec
    section = spec.train.model_copy(
        update={
            "num_workers": spec.sweep.workers_per_trial,
            "checkpoint_every_epochs": spec.train.epochs or spec.train.max_steps,  # never before the end
            "checkpoint_every_steps": None,
            "checkpoint_every_minutes": max(spec.sweep.checkpoint_every_s / 60, _SHORTEST_MINUTES),
            "keep_checkpoints": 1,
            "keep_best": 1,
        }
    )
    nested = project.with_train(section)
    group = ray.util.get_current_placement_group()
    assert group is not None
    each = WorkerRequest(1, section.cpus_per_worker, section.gpus_per_worker, "a trial's workers")
    # A loop of the recipe's own may take any number of steps.
    writer = EpochWriter(on_epoch, after=after, ends_by_steps=project.recipe_class.train_loop is None)
    request = RunRequest(
        nested,
        prepared,
        folder,
        writer,
        unused_parameters=has_unused_parameters(nested, prepared),
        room=Reserved(each, workers=spec.sweep.workers_per_trial),
        placement_group=group,
        stop=lambda: "interrupted" if stopping() else "",
        trial=True,
    )
    rounds = 0
    while not stopping():
        try:
            outcome, _ = supervisor.fit(request)
        except InsufficientResourcesError as error:
            if (rounds := rounds + 1) >= _ROUNDS:
                # Others may need what the trial still holds. It resumes once it gets another placement group.
                raise PlacesLostError("a node of its workers was lost, and Ray does not place them again") from error
            continue
        except KeyboardInterrupt:
            if not stopping():
                raise
            return
        writer.close(outcome)
        return


class Reserved(Places):
    """The places in a trial's own placement group, which are always there."""

    def __init__(self, one: WorkerRequest, *, workers: int) -> None:
        super().__init__(one)
        self._workers = workers

    def count(self, *, without: Collection[str] = ()) -> float:  # noqa: ARG002 - the group stays where it is
        """Return how many workers it holds."""
        return self._workers

    def may_grow(self, workers: int) -> bool:  # noqa: ARG002
        """Return False: nothing has to be added."""
        return False
