"""The request to train a run: what the driver hands to its supervisor, unchanged over all attempts."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from raymlops.config.train import TrainSection
    from raymlops.data.prepare import Prepared
    from raymlops.project import Project
    from raymlops.records import MetricPoint
    from raymlops.training.events import Event
    from raymlops.training.runs.lookup import Place
    from raymlops.training.supervision.scaling_policy import Room


class Writer(Protocol):
    """Writes the run's record."""

    def __call__(self, event: Event) -> None:
        """Write an event."""
        ...

    def catch_up(self, points: Sequence[MetricPoint]) -> int:
        """Write those points of a checkpoint that are not written yet."""
        ...

    def note_restart(self, reason: str, *, step: int, workers: int) -> None:
        """Record that another attempt has started after ``step``."""
        ...


@dataclass(frozen=True)
class RunRequest:
    """A project to train, where its files are, and who is told."""

    project: Project
    prepared: Prepared
    place: Place
    writer: Writer
    unused_parameters: bool | None = False
    """Whether the loss leaves parameters without a gradient; None where the first worker has to find out."""
    room: Room | None = None
    """Counts the workers that fit; required where there are workers."""
    stop: Callable[[], str] = lambda: ""
    """Returns why to stop after a last checkpoint, once there is a reason; may raise KeyboardInterrupt."""

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
