"""The report of a live model, kept in MLflow as an artifact of its champion's run.

Owns when it is written: once windows have been judged since, at most once an hour, in place of the previous one. A
controller that starts writes it once more. It shows stored verdicts, so that nothing is judged for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.lifecycle.live.change import within
from raymlops.lifecycle.live.lineup import champion_of
from raymlops.lifecycle.watch.drift import reported
from raymlops.state.drift import judged_windows

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from raymlops.state.store import State
    from raymlops.tracking.client import Tracker

ARTIFACT = "drift/report.html"
ANSWER_S = 60.0
"""How long MLflow may take."""
_NEWEST = 8


class KeptReports:
    """Keeps the reports of models, each time that windows of one were judged."""

    def __init__(self, state: State, tracker: Callable[[], Tracker]) -> None:
        """``tracker`` returns MLflow's client, when it is needed."""
        self._state = state
        self._tracker = tracker
        self._kept: dict[str, object] = {}
        """Of each model what its report shows: the champion, and the newest windows."""

    def __call__(self, name: str, now: datetime) -> None:
        """Write the report of a model, unless nothing was judged since the last one.

        Raises:
            TrackingError, NotFoundError: MLflow does not answer, or the run was deleted; it is tried at the next call.
            StorageError: the log cannot be read.
        """
        champion = champion_of(self._state.deployments(name))
        windows = judged_windows(self._state, name, limit=_NEWEST)
        if champion is None or not windows:
            return
        shown = (champion.version, [(one.side, one.kind, one.start, one.judged_at) for one in windows])
        if self._kept.get(name) == shown:
            return
        html, run_id = reported(self._state, name, now=now, only_stored=True), champion.run_id
        within(ANSWER_S, lambda: self._tracker().log_text(run_id, html, ARTIFACT))
        self._kept[name] = shown
