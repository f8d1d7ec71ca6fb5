"""The request to train a run: what the driver hands to its supervisor, unchanged over all attempts."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.storage import filesystem
from raymlops.training.runs.lookup import CHECKPOINTS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from raymlops.config.train import TrainSection
    from raymlops.data.prepare import Prepared
    from raymlops.project import Project
    from raymlops.records import MetricPoint
    from raymlops.training.events import Event
    from raymlops.training.supervision.processes import WorkerProcesses
    from raymlops.training.supervision.scaling_policy import Room


@dataclass(frozen=True)
class RunRequest:
    """A project to train, the folder of the run's files, and what receives its events."""

    project: Project
    prepared: Prepared
    files_uri: str
    writer: Callable[[Event], None]
    """Receives each event; must not raise, since each may hold metrics that are nowhere else."""
    catch_up: Callable[[Sequence[MetricPoint]], object] = lambda _points: None
    """Receives the points of a checkpoint: the process that should have written them may have died."""
    unused_parameters: bool | None = False
    """Whether the loss leaves parameters without a gradient; None where the first worker has to find out."""
    room: Room | None = None
    """Counts the workers that fit; required where there are workers."""
    started: WorkerProcesses | None = None
    """The processes of the first attempt, where they were started ahead; the caller ends them if there is none."""
    placement_group: Any = None
    """The placement group that holds the workers, in the bundles after its first; None: each attempt has one."""
    stop: Callable[[], str] = lambda: ""
    """Returns why to stop after a last checkpoint, once there is a reason; may raise KeyboardInterrupt."""
    trial: bool = False
    """Whether it is a trial of a sweep."""

    @property
    def checkpoints_uri(self) -> str:
        """Return the folder of the run's checkpoints."""
        return filesystem.join(self.files_uri, CHECKPOINTS)

    @property
    def section(self) -> TrainSection:
        """Return the ``train`` section."""
        return self.project.spec.train

    def count_room(self, *, excluded: Callable[[], Collection[str]], default: float = 0) -> float:
        """Return how many more workers there is room for; ``default`` where the cluster does not answer now."""
        assert self.room is not None
        with suppress(Exception):
            return self.room.count(without=excluded())
        return default
