"""A sender that writes the runs that are due together: for a database, where that costs a fraction of one request each.

Owns which runs go together and how long they wait for each other. A run that is not written with others is sent by
requests of its own, as the sender of any other store does.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from raymlops.tracking.client import METRIC_BATCH
from raymlops.tracking.run_tables import RunWrite
from raymlops.tracking.sender import FLUSH_EVERY_S, Sender

if TYPE_CHECKING:
    from raymlops.tracking.pending import Batch, PendingRun

GATHER_S = 1.0
"""How long a run waits for others, and a new one for its end, so that a short one is written once."""
MAX_RUNS = 100
MAX_POINTS = 5_000
"""Runs and points per transaction, which keeps other writers of a SQLite file waiting: some tens of milliseconds."""
MAX_REJECTIONS = 2
"""Rejections in a row before a run is sent by requests of its own: the first one of runs that were written together,
the second of the run itself."""


class BulkSender(Sender):
    """Sends runs to a tracker that takes many (``Tracker.takes_many``)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._next_s = -math.inf
        """When the next transaction may start."""

    def schedule(self, run: PendingRun, due_s: float = -math.inf) -> None:
        """Let the thread look at a run, now or at ``due_s``, or a little later together with others."""
        if not self._closing and _fits(run):
            wait_s = GATHER_S if run.new_run is not None and run.ending is None else 0.0
            due_s = max(due_s, self._next_s, self._clock() + wait_s)
        super().schedule(run, due_s)

    # Below, the thread.

    def _work_on(self, run: PendingRun) -> None:
        with self.changed:
            runs = self._together(run)
        if not runs:
            super()._work_on(run)
            return
        try:
            self._write(runs)
        except Exception as error:
            with self.changed:
                self._failed(runs, error, repeatable=True)
                for failed in runs:
                    if len(failed.rejections) >= MAX_REJECTIONS:
                        self._separate(failed)

    def _together(self, first: PendingRun) -> list[PendingRun]:
        """Return a run and the others that are due, as far as they can be written together."""
        if not self._is_writable(first):
            return []
        runs, num_points = [first], len(first.points)
        for run in sorted(self.open.values(), key=lambda run: run.due_s):
            full = len(runs) >= MAX_RUNS or num_points >= MAX_POINTS or first.rejections
            if full or run.due_s > self._clock():
                break
            if run is not first and not run.rejections and self._is_writable(run):
                run.due_s = math.inf
                runs.append(run)
                num_points += min(len(run.points), METRIC_BATCH)
        self._next_s = self._clock() + (GATHER_S if len(runs) < MAX_RUNS else 0.0)
        return runs

    def _is_writable(self, run: PendingRun) -> bool:
        if not _fits(run) or self.open.get(run.name) is not run:
            return False
        return run.new_run is not None or self._batch_due(run) or (run.ending is not None and not run.artifacts)

    def _write(self, runs: list[PendingRun]) -> None:
        if any(run.unchecked for run in runs):
            self._tracker.check()
        with self.changed:
            batches = [(run, run.new_run.run_id if run.new_run else str(run.run_id), run.take()) for run in runs]
            for run in runs:
                run.unchecked = False
        written = self._tracker.write_runs(
            [
                RunWrite(run_id, run.new_run, batch.points, batch.tags, batch.params, batch.ending)
                for run, run_id, batch in batches
            ]
        )
        with self.changed:
            for run, run_id, batch in batches:
                if run_id in written:
                    self._written(run, run_id, batch)
                else:
                    self._separate(run)

    def _written(self, run: PendingRun, run_id: str, batch: Batch) -> None:
        run.run_id, run.new_run = run_id, None
        run.sent(batch)
        run.flush_s = self._clock() + FLUSH_EVERY_S
        ended = batch.ending is not None and run.ending is batch.ending
        if ended and not (run.has_batch or run.artifacts or run.unread):
            self._close(run)
            return
        self._settle(run)
        more = self._closing or run.unread or run.artifacts or run.ending is not None
        self.schedule(run, -math.inf if more else run.flush_s)

    def _separate(self, run: PendingRun) -> None:
        """Send a run alone from now on."""
        run.alone, run.new_run = True, None
        run.unread = run.unread or run.failures > 0
        self.schedule(run)


def _fits(run: PendingRun) -> bool:
    """Return whether a run can be written with others: nothing that MLflow has of it matters."""
    return not run.alone and (run.new_run is not None or not (run.run_id is None or run.unread or run.params))
