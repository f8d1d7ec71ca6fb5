"""Save a run's checkpoints: the last few and the best few, in folders that are complete or absent.

::

    runs/<run_id>/checkpoints/
      step-00000120-<token>-<n>/   model.safetensors  trainer.pt  state.json  manifest.json
      index.json                   the pointer: which are kept, which one is best, which one is last

Owns what is copied of a run, and when a failed write raises. ``background`` does the rest in a thread, so that the
caller waits for copies in host memory alone; ``latest`` finds what a killed process left.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from raymlops.errors import NonFiniteError, StorageError
from raymlops.storage import filesystem, manifest
from raymlops.training.checkpoints.background import Job, Publisher
from raymlops.training.checkpoints.format import (
    Optimizers,
    Stateful,
    kinds_of,
    optimizers_of,
    write_state,
    write_trainer,
    write_whole,
)
from raymlops.training.checkpoints.host_copies import HostCopies, model_state, not_finite
from raymlops.training.checkpoints.retention import Entry, Kept

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import nn

    from raymlops.config.train import TrainSection
    from raymlops.training.checkpoints.host_copies import Entries
    from raymlops.training.checkpoints.state import RunState
    from raymlops.training.ema import Ema

_SLACK_BYTES = 1 << 20
"""Room for headers, JSON and the pointer beside the tensors."""


@dataclass(frozen=True)
class Snapshot:
    """A run's progress and what it trains. All of it is live: ``save`` copies what it keeps."""

    state: RunState
    metrics: dict[str, float]
    """Of the report at which it is taken; empty in mid-epoch."""
    model: nn.Module
    """Its weights are what is evaluated and registered: with an average, these are the averages."""
    optimizer: Optimizers | None
    fit: Mapping[str, Any]
    scaler: Any | None = None
    ema: Ema | None = None
    keep: Mapping[str, Stateful] = field(default_factory=dict)
    """What else has a state: schedulers, and what a loop of one's own keeps."""
    not_finite_at_start: Entries = field(default_factory=dict)
    """Entries of the model's tensors that were NaN or infinite before the first step, which are intended."""


class Saver(Protocol):
    """Keeps models: in a folder for a run, in memory for a trial."""

    @property
    def last_uri(self) -> str | None:
        """Return the URI from which the last snapshot can be restored, if any."""

    @property
    def best_uri(self) -> str:
        """Return the URI of the best one of ``kept``."""

    @property
    def kept(self) -> Kept | None:
        """Return which checkpoints exist, if any."""

    @property
    def busy(self) -> bool:
        """Return whether this rank is writing a checkpoint, for which the next ``save`` would wait.

        A checkpoint that is due by time can be postponed. One that is due by steps waits for the previous one: at most
        one interval may have to be repeated.
        """

    def save(self, snapshot: Snapshot, *, best: bool, last: bool) -> None:
        """Keep a snapshot; ``best`` of all reports so far, ``last`` before the loop ends."""

    def wait(self) -> None:
        """Return once everything handed over is saved."""


class FolderSaver(Publisher):
    """Writes a run's checkpoints. Every rank has one and calls it equally often, with equal arguments.

    A whole checkpoint is written by rank 0 alone. A sharded one is written by all ranks into one folder: each reports
    the outcome of its part over ``group``, rank 0 seals or removes the folder, and all learn which.
    """

    def __init__(
        self,
        section: TrainSection,
        uri: str,
        *,
        token: str,
        identity: Mapping[str, str],
        kept: Kept | None = None,
        rank: int = 0,
        world_size: int = 1,
        group: Any | None = None,
        on_event: Callable[[str], None] = lambda _message: None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """Write into ``uri``; ``token`` is unique to this attempt, ``kept`` is what ``recall`` found.

        ``on_event`` is called from the writing thread, on rank 0. ``alive`` is called about every second while a call
        waits for that thread: a slow upload is no hang. One that stands still for ``hang_timeout_s``, and a time by
        its size, raises.
        """
        super().__init__(
            section, uri, kept=kept or Kept(), rank=rank, world_size=world_size, group=group, on_event=on_event
        )
        self._token = token
        self._metric = section.metric
        self._identity = dict(identity)
        self._stop_on_error = section.on_checkpoint_error == "stop"
        self._alive = alive
        self._copies = HostCopies()
        self._saves = 0
        self._final = False

    @property
    def best_uri(self) -> str:
        """Return the folder of the best checkpoint, on rank 0, or sharded, on all.

        Raises:
            StorageError: no best checkpoint was written.
        """
        if self.kept.best is None:
            raise StorageError(f"no checkpoint of a report was written to {self.uri!r}, so there is no best one")
        return filesystem.join(self.uri, self.kept.best)

    @property
    def last_uri(self) -> str | None:
        """Return the folder of the last complete checkpoint, None without one; on rank 0, or sharded, on all."""
        return None if self.kept.last is None else filesystem.join(self.uri, self.kept.last)

    def save(self, snapshot: Snapshot, *, best: bool, last: bool) -> None:
        """Copy the snapshot and write it in a thread, after the previous one, whose failure may be raised here.

        Shards in host memory are not copied, which would take as much memory again: this returns once they are written.

        Raises:
            NonFiniteError: the model holds NaN or infinity where it had a number at the start; nothing was written.
            RecipeError: model or optimizer hold something that a checkpoint cannot.
            StorageError: the previous one could not be written, and ``on_error`` is "stop"; or writing it hangs.
            RefusedError: another attempt of this run now writes here.
        """
        self._settle()
        self._saves += 1
        self._final |= snapshot.state.finished
        if self._rank == 0 or self._sharded:
            with nullcontext() if snapshot.ema is None else snapshot.ema.applied():
                self._start(self._staged(snapshot, best=best, last=last), alive=self._alive)

    def wait(self) -> None:
        """Return once everything handed over is written.

        Raises:
            StorageError: it could not be written and ``on_error`` is "stop"; or it was the last one; or the run is
                finished and its best one could not be written.
            NonFiniteError, RefusedError: as in ``save``.
        """
        self._settle()
        if "last" in self._lost:
            raise self._lost["last"]
        if "best" in self._lost and self._final:
            raise self._lost["best"]

    def _settle(self) -> None:
        failure = self._join(alive=self._alive)
        if failure is not None and (self._stop_on_error or not isinstance(failure, StorageError)):
            raise failure

    def _staged(self, snapshot: Snapshot, *, best: bool, last: bool) -> Job:
        """Copy all that the thread will write, since the loop changes it afterwards."""
        state, value = snapshot.state, snapshot.metrics.get(self._metric)
        entry = Entry(
            name=f"step-{state.step:08d}-{self._token}-{self._saves}",
            step=state.step,
            order=self.kept.next_order,
            reports=len(state.history),
            value=value if value is not None and math.isfinite(value) else None,
        )
        draft = manifest.Draft(filesystem.join(self.uri, entry.name), rank=self._rank, by_range=self._sharded)
        document = self._document(snapshot, entry)
        optimizers = optimizers_of(snapshot.optimizer)
        online = {} if snapshot.ema is None else snapshot.ema.named()
        trainer: dict[str, Any] = {
            "scaler": None if snapshot.scaler is None else self._copies.copy(snapshot.scaler.state_dict(), of="scaler"),
            "keep": {
                key: self._copies.copy(each.state_dict(), of=f"keep {key}") for key, each in snapshot.keep.items()
            },
        }
        if self._sharded:
            from raymlops.training.checkpoints.sharded import in_host_memory, local_bytes, start_save

            live = in_host_memory(snapshot.model)
            finish = start_save(
                draft.folder,
                snapshot.model,
                optimizers,
                online=online,
                group=self._group,
                except_for=snapshot.not_finite_at_start,
                copy=not live,
            )

            def fill_sharded(folder: Path) -> None:
                if self._rank == 0:
                    write_trainer(folder, trainer)
                    write_state(folder, document)

            size_bytes = local_bytes(snapshot.model, optimizers, online)
            return Job(
                entry, draft, best=best, last=last, fill=fill_sharded, size_bytes=size_bytes, finish=finish, live=live
            )

        state_dict = model_state(snapshot.model)
        poisoned = not_finite(state_dict, except_for=snapshot.not_finite_at_start)
        if poisoned is not None:
            raise NonFiniteError(
                f"a model with NaN or infinity is not saved as a checkpoint; found in {poisoned} at step {state.step}",
                hint=f"The last good one is {self.kept.last or 'none'}. Lower train.lr, or set train.clip_norm.",
            )
        model = self._copies.copy(state_dict, of="model")
        trainer["optimizers"] = {
            key: self._copies.copy(each.state_dict(), of=f"optimizer {key}") for key, each in optimizers.items()
        }
        trainer["online"] = self._copies.copy(online, of="online")

        def fill_whole(folder: Path) -> None:
            write_whole(folder, model=model, trainer=trainer)
            write_state(folder, document)

        need_bytes = self._copies.size_bytes + _SLACK_BYTES
        return Job(entry, draft, best=best, last=last, fill=fill_whole, need_bytes=need_bytes, size_bytes=need_bytes)

    def _document(self, snapshot: Snapshot, entry: Entry) -> dict[str, Any]:
        return {
            "identity": self._identity,
            "epoch": snapshot.state.epoch,
            "step": entry.step,
            "order": entry.order,
            "metrics": dict(snapshot.metrics),
            "fit": dict(snapshot.fit),
            "run": snapshot.state.to_dict(),
            "optimizer": kinds_of(snapshot.optimizer),
            "ema": snapshot.ema is not None,
            "sharded": self._sharded,
            "world_size": self._world_size,
        }
