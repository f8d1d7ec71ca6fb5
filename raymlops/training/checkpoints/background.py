"""Write checkpoints in a background thread: files, manifest, pointer, and only then remove old ones.

Owns that order, the thread, and what ranks exchange about a sharded checkpoint. A killed process leaves an unfinished
folder or one that the pointer does not name yet. Knows nothing of models, nor of when a checkpoint is due.
"""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.config.credentials import redact
from raymlops.errors import RaymlopsError, RefusedError, StorageError, TrainingError
from raymlops.storage import filesystem, manifest
from raymlops.training.checkpoints.format import read_pointer
from raymlops.training.checkpoints.retention import POINTER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from raymlops.config.train import TrainSection
    from raymlops.training.checkpoints.retention import Entry, Kept

_HEARTBEAT_S = 1.0
"""Interval of heartbeats while waiting for the thread."""
_SLOWEST_BYTES_S = 5e6
"""A write at less than this rate hangs."""
_LOG_EVERY = 10
"""Report every Nth consecutive failure with the same cause."""


@dataclass(frozen=True)
class Job:
    """One checkpoint to be written; ``fill`` puts this rank's files into a folder."""

    entry: Entry
    draft: manifest.Draft
    best: bool
    last: bool
    fill: Callable[[Path], None]
    need_bytes: int = 0
    """Checked to be free before the first byte is written."""
    size_bytes: int = 0
    """About the size of this rank's files, which decides how long writing them may take."""
    finish: Callable[[], None] | None = None
    """Writes this rank's shards, together with the other ranks."""
    live: bool = False
    """Whether ``finish`` writes what the training changes, which waits for it."""


class Publisher:
    """The part of a saver that writes, one checkpoint at a time. Sharded, every rank has one and learns the outcome."""

    def __init__(
        self,
        section: TrainSection,
        uri: str,
        *,
        kept: Kept,
        rank: int,
        world_size: int,
        group: Any | None,
        on_event: Callable[[str], None],
    ) -> None:
        self.uri = uri
        self.kept = kept
        """Which checkpoints exist: at first what ``recall`` found, later on rank 0, or sharded, on all."""
        self.failures = 0
        """How many checkpoints could not be written; on rank 0, or sharded, on all."""
        self._lost: dict[str, RaymlopsError] = {}
        """Why the newest ``best`` or ``last`` could not be written."""
        self._section = section
        self._sharded = section.strategy == "fsdp"
        self._rank, self._world_size, self._group = rank, world_size, group
        self._on_event = on_event
        self._thread: threading.Thread | None = None
        self._written = threading.Event()
        """Set once the thread needs nothing of the training any more."""
        self._failure: RaymlopsError | None = None
        self._stage: tuple[str, float, float] = ("", 0.0, math.inf)
        """What the thread does, since when, and how many seconds it may take."""
        self._in_a_row = 0
        self._reported: set[str] = set()
        """The reasons reported since the last successful write."""

    @property
    def busy(self) -> bool:
        """Return whether this rank is writing a checkpoint; a whole one is written by rank 0 alone.

        Raises:
            StorageError: it hangs.
        """
        writing = self._thread is not None and self._thread.is_alive()
        if writing:
            self._check_stage()
        return writing

    def _start(self, job: Job, *, alive: Callable[[], None]) -> None:
        """Write a checkpoint in a thread. The previous one must have been joined. A live one is waited for.

        Raises:
            StorageError: the thread hangs.
        """
        self._enter(f"the checkpoint of step {job.entry.step} is being prepared", job.size_bytes)
        self._written.clear()
        self._thread = threading.Thread(target=self._work, args=(job,), daemon=True, name="checkpoint")
        self._thread.start()
        while job.live and not self._written.wait(_HEARTBEAT_S):
            self._check_stage()
            alive()

    def _join(self, *, alive: Callable[[], None]) -> RaymlopsError | None:
        """Wait for the thread, with a heartbeat about every second, and return its failure.

        Raises:
            StorageError: the thread hangs.
        """
        while self._thread is not None:
            self._thread.join(_HEARTBEAT_S)
            if self._thread.is_alive():
                self._check_stage()
                alive()
            else:
                self._thread = None
        failure, self._failure = self._failure, None
        return failure

    def _enter(self, what: str, size_bytes: float = 0) -> None:
        """Note what the thread does next, and with how many bytes: from now on it has time for that."""
        self._stage = (what, time.monotonic(), self._section.hang_timeout_s + size_bytes / _SLOWEST_BYTES_S)

    def _check_stage(self) -> None:
        what, since_s, allowed_s = self._stage
        if (took_s := time.monotonic() - since_s) <= allowed_s:
            return
        # What waits for a store that does not answer may pass with another process.
        raise StorageError(
            f"{what}, which hangs: nothing for {took_s:.0f} s (train.hang_timeout_s, and 1 s for each 5 MB)",
            hint=f"Does {redact(self.uri)!r} answer, and is it mounted? {self._kept_hint()}.",
        ) from TimeoutError("the storage does not answer")

    def _work(self, job: Job) -> None:
        """Write one checkpoint and keep the outcome for ``_join``."""
        failure: RaymlopsError | None
        try:
            outcome = self._part(job)
            self.kept, failure = self._agreed(job, outcome) if self._sharded else self._verdict(job, [outcome])
        except Exception as error:
            failure = _unforeseen(job, error)
        finally:
            self._written.set()
        wanted = [kind for kind, asked in (("best", job.best), ("last", job.last)) if asked]
        if failure is None:
            for kind in wanted:
                self._lost.pop(kind, None)
            self._report_success(job)
            return
        self._lost |= dict.fromkeys(wanted, failure)
        self.failures += 1
        self._failure = failure
        self._report_failure(job, failure)

    def _report_failure(self, job: Job, failure: RaymlopsError) -> None:
        """Report a new reason in full; on a full disk each checkpoint fails for the same one."""
        self._in_a_row += 1
        reason = _kind(failure)
        if self._rank == 0:
            if reason not in self._reported:
                self._on_event(f"{failure.message}. {failure.hint or ''}".rstrip())
            elif self._in_a_row % _LOG_EVERY == 0:
                step = job.entry.step
                failures = f"{self._in_a_row} consecutive failures"
                self._on_event(f"the checkpoint of step {step} could not be written either ({failures})")
        self._reported.add(reason)

    def _report_success(self, job: Job) -> None:
        if self._in_a_row and self._rank == 0:
            self._on_event(f"checkpoints can be written again, since that of step {job.entry.step}")
        self._in_a_row = 0
        self._reported.clear()

    def _part(self, job: Job) -> manifest.Digests | RaymlopsError:
        """Write this rank's files, and return their digests or the error."""
        finished = False
        step = job.entry.step
        job.draft.on_file = lambda path: self._enter(
            f"{path.name} of the checkpoint of step {step} is being written to storage", path.stat().st_size
        )
        try:
            if job.need_bytes:
                filesystem.check_space(job.draft.uri, need_bytes=job.need_bytes)
            with job.draft.part() as folder:
                if job.finish is not None:
                    finished = True
                    job.finish()
                    self._written.set()
                job.fill(folder)
        except Exception as error:
            if not finished and job.finish is not None:
                with contextlib.suppress(Exception):  # the other ranks wait for this one there
                    job.finish()
                shutil.rmtree(job.draft.folder, ignore_errors=True)
            return error if isinstance(error, RaymlopsError) else _unforeseen(job, error)
        return job.draft.digests

    def _agreed(self, job: Job, outcome: manifest.Digests | RaymlopsError) -> tuple[Kept, RaymlopsError | None]:
        """Gather every rank's part on rank 0, and broadcast its verdict."""
        from torch import distributed

        self._stage = ("the ranks are being waited for", 0.0, math.inf)  # the group's timeout ends that
        outcomes: list[Any] | None = [None] * self._world_size if self._rank == 0 else None
        distributed.gather_object(outcome, outcomes, dst=0, group=self._group)
        verdict = [None if outcomes is None else self._verdict(job, outcomes)]
        distributed.broadcast_object_list(verdict, src=0, group=self._group)
        assert verdict[0] is not None
        return verdict[0]

    def _verdict(
        self, job: Job, outcomes: Sequence[manifest.Digests | RaymlopsError]
    ) -> tuple[Kept, RaymlopsError | None]:
        """Complete a checkpoint on rank 0. Raises nothing: the other ranks wait for the verdict."""
        try:
            return self._concluded(job, outcomes)
        except Exception as error:
            return self.kept, _unforeseen(job, error)

    def _concluded(
        self, job: Job, outcomes: Sequence[manifest.Digests | RaymlopsError]
    ) -> tuple[Kept, RaymlopsError | None]:
        """Seal the folder, move the pointer, then prune; or remove what was written."""
        refusals = [outcome for outcome in outcomes if isinstance(outcome, RaymlopsError)]
        if refusals:
            job.draft.discard()
            first = next((error for error in refusals if type(error) is not StorageError), refusals[0])
            return self.kept, self._explained(job, first)
        try:
            self._enter(f"the checkpoint of step {job.entry.step} is being completed")
            job.draft.seal({name: entry for part in outcomes if isinstance(part, dict) for name, entry in part.items()})
            self._check_claim()
            saved = self.kept.saved(job.entry, best=job.best)
            kept = saved.pruned(self._section)
            filesystem.write_bytes(filesystem.join(self.uri, POINTER), kept.to_json())
        except Exception as error:
            job.draft.discard()
            return self.kept, self._explained(job, error)
        self._prune([entry.name for entry in saved.entries if kept.entry(entry.name) is None])
        return kept, None

    def _check_claim(self) -> None:
        """Refuse to move the pointer of a later attempt; this one may have been partitioned, yet be alive."""
        if not self.kept.claim:
            return
        current = read_pointer(self.uri)
        if current is not None and current.claim != self.kept.claim:
            raise RefusedError(
                f"another attempt of this run writes checkpoints to {self.uri!r} now",
                hint="This process was considered dead and must exit.",
            )

    def _prune(self, names: Sequence[str]) -> None:
        for name in names:
            self._enter(f"checkpoint {name}, which is no longer needed, is being removed")
            try:
                manifest.delete(filesystem.join(self.uri, name))
            except StorageError as error:
                self._on_event(f"checkpoint {name} is no longer needed, but cannot be removed: {error.message}")

    def _explained(self, job: Job, error: Exception) -> RaymlopsError:
        if not isinstance(error, RaymlopsError):
            return _unforeseen(job, error)
        if not isinstance(error, StorageError):
            return error
        what = f"the {'best ' if job.best else ''}checkpoint of step {job.entry.step}"
        explained = StorageError(
            f"{what} could not be written: {error.message}", hint=f"{self._kept_hint()}. {error.hint or ''}".rstrip()
        )
        explained.__cause__ = error  # the root cause decides whether it may be transient
        return explained

    def _kept_hint(self) -> str:
        if self.kept.last is None:
            return "There is no earlier checkpoint"
        return f"The last good one is kept: {redact(filesystem.join(self.uri, self.kept.last))}"


def _kind(failure: RaymlopsError) -> str:
    """Return a failure's reason without its variable parts: the checkpoint, sizes, tokens in file names."""
    return f"{type(failure).__name__}: {re.sub('[0-9a-f]*[0-9][0-9a-f]*', '', failure.message.partition(': ')[2])}"


def _unforeseen(job: Job, error: Exception) -> RaymlopsError:
    unforeseen = TrainingError(f"the checkpoint of step {job.entry.step} failed: {type(error).__name__}: {error}")
    unforeseen.__cause__ = error
    return unforeseen
