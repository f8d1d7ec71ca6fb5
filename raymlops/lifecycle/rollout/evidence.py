"""The reports of replicas, summed for the decision on a rollout, and stored with it so that nothing is lost.

Owns the newest report of each replica and the form in which a rollout stores its evidence. Decides nothing. Pure,
except for the lock under which reports arrive while others are read.

Reports hold totals, so that a replica's newest one replaces the previous one. A rollout stores each replica's totals of
the current step, and the sums of earlier steps; a retraining those of its bake. A restarted controller resumes from
there.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from raymlops.lifecycle.rollout.loss_reader import Window
from raymlops.lifecycle.rollout.policy import StepEvidence, evidence_of
from raymlops.predictions.counts import Counts
from raymlops.serving.telemetry.rollout_counts import CHAMPION
from raymlops.state.loop import COUNTED, bake_epoch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.lifecycle.rollout.loss_reader import LossReport
    from raymlops.state.loop import Retraining
    from raymlops.state.rollouts import Rollout

MAX_EPOCHS = 32
"""Of each model, with every replica's totals; the oldest are evicted first."""

ENDED = ""
"""Key of the totals that no replica goes on with."""

SEQUENCE = "sequence"
"""Key of the number of the report that a replica's totals since a promotion are of."""

Rows = dict[str, dict[str, Any]]
"""Counts as data, by version or, since a promotion, by replica."""


class Reports:
    """The newest report of each replica, by model and epoch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: dict[tuple[str, str], int] = {}
        self._rows: dict[str, dict[str, dict[str, tuple[int, Rows]]]] = {}

    def take(self, name: str, replica: str, sequence: int, report: Mapping[str, Rows]) -> None:
        """Store a report, unless a newer one of the replica has arrived."""
        with self._lock:
            if sequence <= self._newest.get((name, replica), 0):
                return
            self._newest[name, replica] = sequence
            epochs = self._rows.setdefault(name, {})
            for epoch, rows in report.items():
                epochs.setdefault(epoch, {})[replica] = sequence, dict(rows)
            while len(epochs) > MAX_EPOCHS:
                del epochs[next(iter(epochs))]

    def of(self, name: str, epoch: str) -> dict[str, Rows]:
        """Return each replica's rows of an epoch."""
        return {replica: rows for replica, (_, rows) in self.numbered(name, epoch).items()}

    def numbered(self, name: str, epoch: str) -> dict[str, tuple[int, Rows]]:
        """Return each replica's rows of an epoch, after the number of the report that they are of."""
        with self._lock:
            return dict(self._rows.get(name, {}).get(epoch, {}))


def epoch_of(rollout: Rollout) -> str:
    """Return the name of a rollout's current step in reports."""
    return f"{rollout.id}.{rollout.step}"


def since_promotion(reports: Reports, one: Retraining) -> Rows:
    """Return each replica's totals since a retrained version's promotion: as stored with it, or newer ones.

    Totals never fall, so that parts of a bake can be told apart: a replica that begins to count anew, as when a
    person's rollout in between has ended, leaves what it had to those that ended. That its report is a newer one is
    seen by its number: a controller that was paused has older ones.
    """
    totals: Rows = dict(one.found.get(COUNTED, {}))
    for replica, (sequence, rows) in reports.numbered(one.name, bake_epoch(one)).items():
        newest, kept = Counts.from_dict(rows.get(CHAMPION, {})), totals.get(replica, {})
        if sequence <= kept.get(SEQUENCE, 0):
            continue
        if newest.requests < kept.get("requests", 0):
            totals[ENDED] = (Counts.from_dict(totals.get(ENDED, {})) + Counts.from_dict(kept)).to_dict()
        totals[replica] = {**newest.to_dict(), SEQUENCE: sequence}
    return totals


def gathered(rollout: Rollout, reports: Reports, *, losses: LossReport | None = None) -> list[StepEvidence]:
    """Return the evidence of each step so far, the current one last.

    Labels arrive late, so that ``losses`` has those of every step; the stored evidence counts for a step that it does
    not have.
    """
    ever = evidence_of(rollout)[: rollout.step + 1]
    ever += [StepEvidence(weight) for weight in rollout.steps[len(ever) : rollout.step + 1]]
    canary, champion = _sums(replicas_of(rollout, reports), rollout.version)
    steps = [*ever[:-1], replace(ever[-1], weight=rollout.weight, canary=canary, champion=champion)]
    if losses is None:
        return steps
    return [
        replace(
            step,
            canary_losses=losses.of(rollout.version, window, before=step.canary_losses),
            champion_losses=losses.of(rollout.champion, window, before=step.champion_losses),
        )
        for step, window in zip(steps, windows_of(rollout), strict=True)
    ]


def windows_of(rollout: Rollout) -> list[Window]:
    """Return the time window of each step, the current one last."""
    starts = starts_of(rollout)
    return [Window(since, until) for since, until in zip(starts, [*starts[1:], None], strict=True)]


def replicas_of(rollout: Rollout, reports: Reports) -> dict[str, Rows]:
    """Return each replica's totals of the current step: as stored with the rollout, or newer ones."""
    epoch = epoch_of(rollout)
    kept = rollout.evidence.get("replicas", {}).get(epoch, {})
    return {**kept, **reports.of(rollout.name, epoch)}


def starts_of(rollout: Rollout) -> list[datetime]:
    """Return when each step began, the current one last."""
    known = [datetime.fromisoformat(text) for text in rollout.evidence.get("starts", ())][: rollout.step]
    known += [rollout.started_at] * (rollout.step - len(known))
    return [*known, rollout.step_started_at]


def with_sources(rollout: Rollout, before: Rollout, reports: Reports) -> Rollout:
    """Return a rollout that also stores the sources of its evidence, as of ``before`` the decision."""
    sources = {
        "replicas": {epoch_of(before): replicas_of(before, reports)},
        "starts": [start.isoformat() for start in starts_of(before)],
    }
    return replace(rollout, evidence={**rollout.evidence, **sources})


def _sums(replicas: Mapping[str, Rows], version: int) -> tuple[Counts, Counts]:
    canary = champion = Counts()
    for rows in replicas.values():
        canary += Counts.from_dict(rows.get(str(version), {}))
        champion += Counts.from_dict(rows.get(CHAMPION, {}))
    return canary, champion
