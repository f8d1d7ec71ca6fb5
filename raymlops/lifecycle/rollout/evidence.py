"""What replicas reported, added up for the decision on a rollout, and kept with it so that nothing is lost.

Owns the newest report of each replica and the form in which a rollout keeps its evidence. Decides nothing. Pure, but
for the lock that lets reports come in while others are read.

Reports hold totals, so that the newest one of a replica replaces the one before. What a rollout keeps is, of its step
now, each replica's totals; of the steps before, their sums. A controller that starts anew goes on from there.
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

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.lifecycle.rollout.loss_reader import LossReport
    from raymlops.state.rollouts import Rollout

MAX_EPOCHS = 32
"""Of each model, with every replica's totals; the oldest go first."""

Rows = dict[str, dict[str, Any]]


class Reports:
    """The newest report of each replica, by model and epoch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: dict[tuple[str, str], int] = {}
        self._rows: dict[str, dict[str, dict[str, Rows]]] = {}

    def take(self, name: str, replica: str, sequence: int, report: Mapping[str, Rows]) -> None:
        """Keep a report, unless a newer one of the replica is here already."""
        with self._lock:
            if sequence <= self._newest.get((name, replica), 0):
                return
            self._newest[name, replica] = sequence
            epochs = self._rows.setdefault(name, {})
            for epoch, rows in report.items():
                epochs.setdefault(epoch, {})[replica] = dict(rows)
            while len(epochs) > MAX_EPOCHS:
                del epochs[next(iter(epochs))]

    def of(self, name: str, epoch: str) -> dict[str, Rows]:
        """Return each replica's rows of an epoch."""
        with self._lock:
            return dict(self._rows.get(name, {}).get(epoch, {}))


def epoch_of(rollout: Rollout) -> str:
    """Return what the traffic of a rollout's step is called in reports."""
    return f"{rollout.id}.{rollout.step}"


def gathered(rollout: Rollout, reports: Reports, *, losses: LossReport | None = None) -> list[StepEvidence]:
    """Return what is known of each step so far, the step now last.

    Labels come late, so that ``losses`` has those of every step; of a step that it does not know, and without it, what
    the rollout keeps stands.
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
    """Return from when until when each step was, the step now last."""
    starts = starts_of(rollout)
    return [Window(since, until) for since, until in zip(starts, [*starts[1:], None], strict=True)]


def replicas_of(rollout: Rollout, reports: Reports) -> dict[str, Rows]:
    """Return each replica's totals of the step now: those that the rollout keeps, or newer ones."""
    epoch = epoch_of(rollout)
    kept = rollout.evidence.get("replicas", {}).get(epoch, {})
    return {**kept, **reports.of(rollout.name, epoch)}


def starts_of(rollout: Rollout) -> list[datetime]:
    """Return when each step began, the step now last."""
    known = [datetime.fromisoformat(text) for text in rollout.evidence.get("starts", ())][: rollout.step]
    known += [rollout.started_at] * (rollout.step - len(known))
    return [*known, rollout.step_started_at]


def with_sources(rollout: Rollout, before: Rollout, reports: Reports) -> Rollout:
    """Return a rollout that also keeps what its evidence came from, as it was ``before`` the decision."""
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
