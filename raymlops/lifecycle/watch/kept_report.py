"""The reports of live models, each kept in MLflow as an artifact of its champion's run.

Owns when one is written: once windows have been judged since, at most once an hour, in place of the previous one. A
controller that starts writes it once more. It shows stored verdicts, so that nothing is judged for it. An MLflow that
does not answer is waited for once a turn; the next one begins with the models after that.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from raymlops.errors import NotFoundError, TrackingError
from raymlops.lifecycle.live.change import within
from raymlops.lifecycle.live.lineup import champion_of
from raymlops.lifecycle.live.recorded_failures import RecordedFailures
from raymlops.lifecycle.watch.drift import reported
from raymlops.lifecycle.watch.status import newest_verdicts
from raymlops.state.watch.incidents import incidents_of
from raymlops.state.watch.windows import newest_window
from raymlops.tracking.failures import refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from raymlops.state.store import State
    from raymlops.tracking.client import Tracker

ARTIFACT = "drift/report.html"
ANSWER_S = 60.0
"""How long MLflow may take for one."""
TURN_S = 300.0
"""After which a turn begins no other one."""

_log = logging.getLogger(__name__)


class KeptReports:
    """Keeps the reports of all live models. Called once an hour, in a thread that may take minutes."""

    def __init__(
        self, state: State, tracker: Callable[[], Tracker], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``tracker`` returns MLflow's client, when it is needed."""
        self._state = state
        self._tracker = tracker
        self._clock = clock
        self._failures = RecordedFailures(state)
        self._kept: dict[str, object] = {}
        """Of each model what its report shows, or would where its run was deleted: version, windows, incidents."""
        self._last = ""
        """The model whose turn it was last."""

    def __call__(self, now: datetime) -> None:
        """Write the reports of models of which windows were judged since the last one.

        What fails for one is recorded, and the others are written; where MLflow does not answer, in the next turn.
        """
        ends = self._clock() + TURN_S
        names = {item.name for item in self._state.deployments()}
        for name in sorted(names, key=lambda name: (name <= self._last, name)):
            if self._clock() >= ends:
                return
            self._last = name
            try:
                self._keep(name, now)
            except Exception as error:
                _log.warning("the report of %s", name, exc_info=error)
                self._failures.put(name, f"its report was not kept: {type(error).__name__}: {error}")
                unheard = isinstance(error, TrackingError) and not refused(error)
                if unheard or not isinstance(error, (TrackingError, NotFoundError)):
                    self._kept.pop(
                        name, None
                    )  # it is tried again at the next turn, and not only once more is to be shown
                if unheard:
                    return

    def _keep(self, name: str, now: datetime) -> None:
        champion = champion_of(self._state.deployments(name))
        if champion is None:
            return
        windows = [*newest_verdicts(self._state, name, champion.version).values()]
        skill = newest_window(self._state, name, side="outputs", version=champion.version, kind="skill")
        windows += [] if skill is None else [skill]
        open_ = incidents_of(self._state, name, open_only=True)
        shown = (champion.version, [(one.side, one.kind, one.start, one.judged_at) for one in windows], open_)
        if not windows or self._kept.get(name) == shown:
            return
        self._kept[name] = shown
        html, run_id = reported(self._state, name, now=now, only_stored=True), champion.run_id
        within(ANSWER_S, lambda: self._tracker().log_text(run_id, html, ARTIFACT))
        self._failures.over(name)
