"""Checkpoints of a trial, which only serve to resume it.

Owns when one is written: periodically, and when the training is stopped early. A trial that ends by itself needs none.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from raymlops.training.checkpoints.saver import FolderSaver

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from raymlops.config.train import TrainSection
    from raymlops.training.checkpoints.retention import Kept
    from raymlops.training.checkpoints.saver import Snapshot


def section_of(train: TrainSection) -> TrainSection:
    """Return a trial's training section: a checkpoint is offered at every step and report, and one is kept.

    Everything that decides a result, such as early stopping and the seed, is unchanged.
    """
    return train.model_copy(
        update={
            "checkpoint_every_epochs": 1,
            "checkpoint_every_steps": None,
            "checkpoint_every_minutes": 0.0,  # ``TrialSaver.busy`` skips it until it is due
            "keep_checkpoints": 1,
            "keep_best": 0,
        }
    )


class TrialSaver:
    """Wraps a ``FolderSaver`` and keeps no best checkpoint: the winner of a sweep is trained again.

    ``kept`` is what ``recall`` found. The training does not see it: the state in a checkpoint holds the best report,
    whether or not its weights were written, so that early stopping counts as if uninterrupted.
    """

    kept: Kept | None = None
    best_uri = ""
    last_uri: str | None = None
    """None: ``on_non_finite: rollback`` must not depend on when a checkpoint was written."""

    def __init__(
        self,
        section: TrainSection,
        uri: str,
        *,
        every_s: float,
        token: str,
        identity: Mapping[str, str],
        kept: Kept | None = None,
        alive: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write into ``uri`` at most every ``every_s`` seconds, the first one after ``every_s``."""
        self.finished = False
        """Whether the training has reached its end."""
        self._folder = FolderSaver(section, uri, token=token, identity=identity, kept=kept, alive=alive)
        self._every_s = every_s
        self._clock = clock
        self._saved_s = clock()

    @property
    def saved(self) -> bool:
        """Return whether there is a checkpoint to resume from."""
        return self._folder.kept.last is not None

    @property
    def busy(self) -> bool:
        """Return whether to skip the next checkpoint: it is not due, or one is being written.

        With ``every_s`` 0 each one is due, and waits for the previous one.
        """
        return self._every_s > 0 and (self._clock() - self._saved_s < self._every_s or self._folder.busy)

    def save(self, snapshot: Snapshot, *, best: bool, last: bool) -> None:  # noqa: ARG002 - the newest alone counts
        """Write a checkpoint if it is due, or if the training is being stopped.

        Raises:
            NonFiniteError, RecipeError, StorageError, RefusedError: as ``FolderSaver.save``.
        """
        self.finished = snapshot.state.finished
        if self.finished or (self.busy and not last):
            return
        self._folder.save(snapshot, best=False, last=last)
        self._saved_s = self._clock()

    def wait(self) -> None:
        """Wait until all checkpoints are written.

        Raises:
            NonFiniteError, StorageError, RefusedError: as ``FolderSaver.wait``.
        """
        self._folder.wait()
