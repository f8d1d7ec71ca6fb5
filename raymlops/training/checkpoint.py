"""Checkpoints of a run: the last few and the best few, in folders that are whole or absent.

::

    runs/<run_id>/checkpoints/
      step-00000120-<token>-<n>/   model.safetensors  trainer.pt  state.json  manifest.json
      index.json                   the pointer: which are kept, which one is best, which one is last

Owns when and in which order that is written: files, manifest, pointer, and only then is anything removed. A killed
process leaves an unfinished folder or one that the pointer does not name yet; ``recall`` sees to both. The caller
waits for copies in host memory alone; a thread does the rest.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from raymlops.errors import NonFiniteError, NotFoundError, RaymlopsError, RefusedError, StorageError, TrainingError
from raymlops.training import sealed, storage
from raymlops.training.contents import load_weights, restore, tensors, write_state, write_trainer, write_whole
from raymlops.training.retention import POINTER, Entry, Kept
from raymlops.training.staging import HostCopies, model_state, not_finite

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch
    from torch import nn

    from raymlops.training.runstate import RunState

__all__ = ["FolderSaver", "MemorySaver", "Saver", "Snapshot", "load_weights", "restore", "tensors"]

_SLACK_BYTES = 1 << 20
"""Room for headers, JSON and the pointer beside the tensors."""


@dataclass(frozen=True)
class Snapshot:
    """Where a run stands and what it trains. All of it is live: ``save`` copies what it keeps."""

    state: RunState
    metrics: dict[str, float]
    """Of the report that it is taken at; empty in mid-epoch."""
    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    scaler: Any | None
    fit: Mapping[str, Any]


class Saver(Protocol):
    """Keeps models: in a folder for a run, in memory for a trial."""

    @property
    def last_uri(self) -> str | None:
        """Return where the last snapshot can be restored from, if anywhere."""
        ...

    @property
    def kept(self) -> Kept | None:
        """Return which checkpoints are there, if any are."""
        ...

    def save(self, snapshot: Snapshot, *, best: bool, last: bool) -> None:
        """Keep a snapshot; ``best`` of all reports so far, ``last`` before the loop ends."""
        ...

    def wait(self) -> None:
        """Return once what was handed over is kept."""
        ...


class MemorySaver:
    """Keeps the best model's state in memory, for trials."""

    def __init__(self) -> None:
        self.model_state: dict[str, torch.Tensor] = {}
        self.last_uri: str | None = None
        self.kept: Kept | None = None

    def save(self, snapshot: Snapshot, *, best: bool, last: bool) -> None:  # noqa: ARG002 - the best alone counts
        """Keep a copy if it is the best so far."""
        if best:
            self.model_state = tensors(snapshot.model)

    def wait(self) -> None:
        """Return at once: a copy is all there is."""


@dataclass(frozen=True)
class _Job:
    """One checkpoint on its way to the disk."""

    entry: Entry
    draft: sealed.Draft
    best: bool
    last: bool
    fill: Callable[[Path], None]
    need_bytes: int = 0
    finish: Callable[[], None] | None = None
    """Writes this rank's shards, together with the other ranks."""


class FolderSaver:
    """Writes a run's checkpoints. Every rank has one and calls it equally often, with equal arguments.

    A whole checkpoint is written by rank 0 alone. A sharded one is written by all ranks into one folder: each says over
    ``group`` what became of its part, rank 0 seals the folder or removes it, and all learn which.
    """

    def __init__(
        self,
        uri: str,
        *,
        token: str,
        keep: int,
        keep_best: int,
        metric: str,
        mode: str,
        identity: Mapping[str, str],
        on_error: str,
        rank: int = 0,
        world_size: int = 1,
        sharded: bool = False,
        group: Any | None = None,
        on_event: Callable[[str], None] = lambda _message: None,
        kept: Kept | None = None,
    ) -> None:
        """Write into ``uri``; ``token`` is of this attempt alone, ``kept`` is what ``recall`` found, if it was asked.

        ``on_error`` is "continue" or "stop". ``on_event`` is called from the writing thread, on rank 0.
        """
        self.uri = uri
        self.stall_s = 0.0
        """How long ``save`` and ``wait`` kept the caller."""
        self.failures = 0
        """Checkpoints that could not be written."""
        self._token = token
        self._keep, self._keep_best = keep, keep_best
        self._metric, self._mode = metric, mode
        self._identity = dict(identity)
        self._stop_on_error = on_error == "stop"
        self._rank, self._world_size = rank, world_size
        self._sharded, self._group = sharded, group
        self._on_event = on_event
        self._kept = kept or Kept()
        self._copies = HostCopies()
        self._saves = 0
        self._thread: threading.Thread | None = None
        self._failure: RaymlopsError | None = None
        self._final = False
        self._lost: dict[str, RaymlopsError] = {}

    @property
    def best_uri(self) -> str:
        """Return the folder of the best checkpoint, on rank 0, or sharded, on all.

        Raises:
            StorageError: none was written.
        """
        if self._kept.best is None:
            raise StorageError(f"no checkpoint of a report was written to {self.uri!r}, so none is the best")
        return storage.join(self.uri, self._kept.best)

    @property
    def last_uri(self) -> str | None:
        """Return the folder of the last checkpoint that is whole, None without one; on rank 0, or sharded, on all."""
        return None if self._kept.last is None else storage.join(self.uri, self._kept.last)

    @property
    def kept(self) -> Kept:
        """Return which checkpoints are there: at first what ``recall`` found, later on rank 0, or sharded, on all."""
        return self._kept

    def save(self, snapshot: Snapshot, *, best: bool, last: bool) -> None:
        """Copy the snapshot and write it in a thread, after the one before, whose failure may be raised here.

        Raises:
            NonFiniteError: the model holds NaN or infinity; nothing was written.
            RecipeError: model or optimizer hold what no checkpoint can.
            StorageError: the one before could not be written, and ``on_error`` is "stop".
            RefusedError: another attempt of this run writes here now.
        """
        started = time.monotonic()
        try:
            self._settle()
            self._saves += 1
            self._final |= snapshot.state.finished
            if self._rank == 0 or self._sharded:
                job = self._staged(snapshot, best=best, last=last)
                self._thread = threading.Thread(target=self._work, args=(job,), daemon=True, name="checkpoint")
                self._thread.start()
        finally:
            self.stall_s += time.monotonic() - started

    def wait(self) -> None:
        """Return once what was handed over is written.

        Raises:
            StorageError: it could not be written and ``on_error`` is "stop"; or it was the last one; or the run is
                finished and its best one could not be written.
            NonFiniteError, RefusedError: as in ``save``.
        """
        started = time.monotonic()
        try:
            self._settle()
        finally:
            self.stall_s += time.monotonic() - started
        if "last" in self._lost:
            raise self._lost["last"]
        if "best" in self._lost and self._final:
            raise self._lost["best"]

    def _settle(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None and (self._stop_on_error or not isinstance(failure, StorageError)):
            raise failure

    def _staged(self, snapshot: Snapshot, *, best: bool, last: bool) -> _Job:
        """Copy all that the thread will write: from here on the loop may change it."""
        state, value = snapshot.state, snapshot.metrics.get(self._metric)
        entry = Entry(
            name=f"step-{state.step:08d}-{self._token}-{self._saves}",
            step=state.step,
            order=self._kept.next_order,
            reports=len(state.history),
            value=value if value is not None and math.isfinite(value) else None,
        )
        draft = sealed.Draft(storage.join(self.uri, entry.name), rank=self._rank)
        document = self._document(snapshot, entry)
        trainer: dict[str, Any] = {
            "scaler": None if snapshot.scaler is None else self._copies.copy(snapshot.scaler.state_dict(), of="scaler")
        }
        if self._sharded:
            from raymlops.training.sharded import start_save

            finish = start_save(draft.folder, snapshot.model, snapshot.optimizer, group=self._group)

            def fill_sharded(folder: Path) -> None:
                if self._rank == 0:
                    write_trainer(folder, trainer)
                    write_state(folder, document)

            return _Job(entry, draft, best=best, last=last, fill=fill_sharded, finish=finish)

        live = model_state(snapshot.model)
        poisoned = not_finite(live)
        if poisoned is not None:
            raise NonFiniteError(
                f"no checkpoint is made of a model with NaN or infinity, found in {poisoned} at step {state.step}",
                hint=f"The last good one is {self._kept.last or 'none'}. Lower train.lr, or set train.clip_norm.",
            )
        model = self._copies.copy(live, of="model")
        trainer["optimizer"] = (
            None if snapshot.optimizer is None else self._copies.copy(snapshot.optimizer.state_dict(), of="optimizer")
        )

        def fill_whole(folder: Path) -> None:
            write_whole(folder, model=model, trainer=trainer)
            write_state(folder, document)

        need_bytes = self._copies.size_bytes + _SLACK_BYTES
        return _Job(entry, draft, best=best, last=last, fill=fill_whole, need_bytes=need_bytes)

    def _document(self, snapshot: Snapshot, entry: Entry) -> dict[str, Any]:
        return {
            "identity": self._identity,
            "epoch": snapshot.state.epoch,
            "step": entry.step,
            "order": entry.order,
            "metrics": dict(snapshot.metrics),
            "fit": dict(snapshot.fit),
            "run": snapshot.state.to_dict(),
            "optimizer": None if snapshot.optimizer is None else type(snapshot.optimizer).__name__,
            "sharded": self._sharded,
            "world_size": self._world_size,
        }

    def _work(self, job: _Job) -> None:
        """Write one checkpoint, in the thread, and keep what became of it for the next call."""
        failure: RaymlopsError | None
        try:
            outcome = self._part(job)
            if not self._sharded:
                self._kept, failure = self._concluded(job, [outcome])
            else:
                self._kept, failure = self._agreed(job, outcome)
        except Exception as error:
            failure = self._unforeseen(job, error)
        wanted = [kind for kind, asked in (("best", job.best), ("last", job.last)) if asked]
        if failure is None:
            for kind in wanted:
                self._lost.pop(kind, None)
            return
        self._lost |= dict.fromkeys(wanted, failure)
        self.failures += 1
        self._failure = failure
        if self._rank == 0:
            self._on_event(f"{failure.message}. {failure.hint or ''}".rstrip())

    def _part(self, job: _Job) -> sealed.Digests | RaymlopsError:
        """Write this rank's files, and return their digests or why there are none."""
        finished = job.finish is None
        try:
            if job.need_bytes:
                storage.check_space(job.draft.uri, need_bytes=job.need_bytes)
            with job.draft.part() as folder:
                if job.finish is not None:
                    finished = True
                    job.finish()
                job.fill(folder)
        except Exception as error:
            if not finished and job.finish is not None:
                with contextlib.suppress(Exception):  # the other ranks wait for this one in there
                    job.finish()
                shutil.rmtree(job.draft.folder, ignore_errors=True)
            return error if isinstance(error, RaymlopsError) else self._unforeseen(job, error)
        return job.draft.digests

    def _agreed(self, job: _Job, outcome: sealed.Digests | RaymlopsError) -> tuple[Kept, RaymlopsError | None]:
        """Bring every rank's part to rank 0, and what it made of them to every rank."""
        from torch import distributed

        outcomes: list[Any] | None = [None] * self._world_size if self._rank == 0 else None
        distributed.gather_object(outcome, outcomes, dst=0, group=self._group)
        verdict = [None if outcomes is None else self._concluded(job, outcomes)]
        distributed.broadcast_object_list(verdict, src=0, group=self._group)
        assert verdict[0] is not None
        return verdict[0]

    def _concluded(
        self, job: _Job, outcomes: Sequence[sealed.Digests | RaymlopsError]
    ) -> tuple[Kept, RaymlopsError | None]:
        """Seal the folder, move the pointer, then prune; or remove what was written. On rank 0."""
        refusals = [outcome for outcome in outcomes if isinstance(outcome, RaymlopsError)]
        if refusals:
            job.draft.discard()
            return self._kept, self._explained(
                job, next((e for e in refusals if type(e) is not StorageError), refusals[0])
            )
        try:
            job.draft.seal(sealed.merged([outcome for outcome in outcomes if isinstance(outcome, dict)]))
            self._check_claim()
            saved = self._kept.saved(job.entry, best=job.best)
            kept = saved.pruned(keep=self._keep, keep_best=self._keep_best, mode=self._mode)
            storage.write_bytes(storage.join(self.uri, POINTER), kept.to_json())
        except RaymlopsError as error:
            job.draft.discard()
            return self._kept, self._explained(job, error)
        except Exception:
            job.draft.discard()
            raise
        self._prune([entry.name for entry in saved.entries if kept.entry(entry.name) is None])
        return kept, None

    def _check_claim(self) -> None:
        """Refuse to move the pointer of an attempt that came after this one, which may be cut off but still alive."""
        if not self._kept.claim:
            return
        with contextlib.suppress(NotFoundError):
            current = Kept.from_json(storage.read_bytes(storage.join(self.uri, POINTER)))
            if current is not None and current.claim != self._kept.claim:
                raise RefusedError(
                    f"another attempt of this run writes checkpoints to {self.uri!r} now",
                    hint="This one was taken for dead and must end.",
                )

    def _prune(self, names: Sequence[str]) -> None:
        for name in names:
            try:
                sealed.delete(storage.join(self.uri, name))
            except StorageError as error:
                self._on_event(f"checkpoint {name} is no longer needed, but cannot be removed: {error.message}")

    def _unforeseen(self, job: _Job, error: Exception) -> RaymlopsError:
        return TrainingError(f"the checkpoint of step {job.entry.step} failed: {type(error).__name__}: {error}")

    def _explained(self, job: _Job, error: RaymlopsError) -> RaymlopsError:
        if not isinstance(error, StorageError):
            return error
        if self._kept.last is None:
            kept = "There is no earlier one"
        else:
            kept = f"The last good one is kept: {storage.join(self.uri, self._kept.last)}"
        what = f"the {'best ' if job.best else ''}checkpoint of step {job.entry.step}"
        return StorageError(
            f"{what} could not be written: {error.message}", hint=f"{kept}. {error.hint or ''}".rstrip()
        )
