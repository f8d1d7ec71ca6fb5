"""The trials of a sweep that can be handed out: those to resume, those drawn in advance, and new ones.

Owns that a point which the recipe rejects is told the sampler and costs no trial. Knows nothing of Ray Tune.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from typing import TYPE_CHECKING

from raymlops.errors import SweepError, describe
from raymlops.tuning.execution.failures import cause

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.project import Project
    from raymlops.tuning.budget import Meter
    from raymlops.tuning.study.open_trial import OpenTrial
    from raymlops.tuning.study.trials import Trials

DRAW_S = 0.1
"""How long other trials may wait for a draw: as long as Tune waits for them."""
MAX_REFUSED = 200
"""Points in a row that the recipe may reject."""


class TrialQueue:
    """Hands out each trial with its configuration as JSON."""

    def __init__(
        self, project: Project, trials: Trials, *, meter: Meter, on_refused: Callable[[OpenTrial, str], None]
    ) -> None:
        """Call ``on_refused`` with a trial that is none, and with the reason where it is the first one of its kind."""
        self.pending: deque[OpenTrial] = deque()
        """Trials to resume when a slot is free."""
        self._project = project
        self._trials = trials
        self._meter = meter
        self._on_refused = on_refused
        self._drawn: tuple[OpenTrial, str] | None = None
        """A trial that was drawn in advance."""
        self._refused: Counter[str] = Counter()
        """Rejected points by cause."""

    def __bool__(self) -> bool:
        """Return whether a trial waits."""
        return bool(self.pending or self._drawn)

    def clear(self) -> None:
        """Forget every trial that waits."""
        self.pending.clear()
        self._drawn = None

    def resumed(self) -> tuple[OpenTrial, str] | None:
        """Return the next trial to resume, with its configuration; None where there is none."""
        while self.pending:
            opened = self.pending.popleft()
            if config := self._config(opened):
                return opened, config
        return None

    def draw(self, wanted: Callable[[], int]) -> tuple[OpenTrial, str] | None:
        """Return the next new trial that the recipe accepts, while more are ``wanted``; None while it is being drawn.

        While others run they are not kept waiting for a draw; while none does, Tune would wait a second.

        Raises:
            SweepError: it rejects one after the other.
            StorageError, UnreachableError: the study's database does not answer; call it again.
        """
        drawn, self._drawn = self._drawn, None
        if drawn is not None:
            return drawn
        for _ in range(MAX_REFUSED):
            if wanted() <= 0:
                return None
            if self._meter.busy and not self._trials.prepare(wait_s=DRAW_S):
                return None
            opened = self._trials.ask()
            if config := self._config(opened):
                return opened, config
        ((reason, count),) = self._refused.most_common(1)
        raise SweepError(
            f"the recipe rejected the last {MAX_REFUSED} points of sweep.space, {count} in all with: {reason}",
            hint="Change the ranges, or make a parameter depend on another with when: {key.path: value}.",
        )

    def draw_ahead(self, wanted: Callable[[], int]) -> None:
        """Draw a trial for the next ``draw``, unless one waits."""
        if not self:
            self._drawn = self.draw(wanted)

    def _config(self, opened: OpenTrial) -> str:
        """Return a trial's configuration; nothing where the recipe rejects it.

        Each value is in its range, but a recipe may reject the combination, and its own code may raise anything.
        """
        section = self._project.spec.sweep
        try:
            data = self._project.with_params(opened.settings).to_dict()
        except Exception as error:
            reason = describe(error)
            self._trials.refuse(opened.number, reason)
            self._refused[cause(reason)] += 1
            self._on_refused(opened, reason if self._refused[cause(reason)] == 1 else "")
            return ""
        workers, train = section.workers_per_trial, data["train"]
        self._meter.reserve(
            opened.number, cpus=workers * train["cpus_per_worker"], gpus=workers * train["gpus_per_worker"]
        )
        return json.dumps(data)
