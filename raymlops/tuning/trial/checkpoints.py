"""A trial's checkpoints: few, because they are there to go on from and for nothing else.

Owns when one is written: each so many seconds of training, and when an order ends the training before its time. A
trial that ends by itself needs none. What one is and how it gets to the disk is ``checkpoint``'s.
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
    """Return the section that a trial trains with: a checkpoint is offered at every step and report, and one is kept.

    Early stopping, the seed and all else that decides a result stay as they are.
    """
    return train.model_copy(
        update={
            "checkpoint_every_epochs": 1,
            "checkpoint_every_steps": None,
            "checkpoint_every_minutes": 0.0,  # ``TrialSaver.busy`` puts it off until it is due
            "keep_checkpoints": 1,
            "keep_best": 0,
        }
    )


class TrialSaver:
    """Stands before a ``FolderSaver``, which is told of no best one: a trial's winner is trained again.

    ``kept`` is what ``recall`` found. It is not passed on to who trains: the state in a checkpoint holds the best
    report of all, whether or not its weights were written, so that early stopping counts as if nothing had happened.
    """

    kept: Kept | None = None
    last_uri: str | None = None
    """None: what ``on_non_finite: rollback`` does must not depend on when a checkpoint was written."""

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
        """Write into ``uri`` at most each ``every_s`` seconds; the first one so long after this."""
        self.finished = False
        """Whether the training has said that there is nothing left to train."""
        self._folder = FolderSaver(section, uri, token=token, identity=identity, kept=kept, alive=alive)
        self._every_s = every_s
        self._clock = clock
        self._saved_s = clock()

    @property
    def saved(self) -> bool:
        """Return whether there is a checkpoint to go on from."""
        return self._folder.kept.last is not None

    @property
    def busy(self) -> bool:
        """Return whether the next checkpoint is to be put off: it is not time yet, or one is being written.

        With ``every_s`` 0 each one is due, and waits for the one before.
        """
        return self._every_s > 0 and (self._clock() - self._saved_s < self._every_s or self._folder.busy)

    def save(self, snapshot: Snapshot, *, best: bool, last: bool) -> None:  # noqa: ARG002 - the newest alone counts
        """Write a checkpoint if it is time, or if an order ends the training.

        Raises:
            NonFiniteError, RecipeError, StorageError, RefusedError: as ``FolderSaver.save``.
        """
        self.finished = snapshot.state.finished
        if self.finished or (self.busy and not last):
            return
        self._folder.save(snapshot, best=False, last=last)
        self._saved_s = self._clock()

    def wait(self) -> None:
        """Return once what was handed over is written.

        Raises:
            NonFiniteError, StorageError, RefusedError: as ``FolderSaver.wait``.
        """
        self._folder.wait()
