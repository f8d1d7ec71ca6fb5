"""Judge the labelled windows of every live model once, whoever dies, and file what follows.

As drift is judged (``watch.judge``). Incidents of versions that are live no more are closed there.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from raymlops.lifecycle.live.each_model import EachModel
from raymlops.lifecycle.quality.due import Seen, due
from raymlops.lifecycle.quality.model import ask_here, quality_model
from raymlops.lifecycle.watch.incidents import file_verdict
from raymlops.lifecycle.watch.messaging.tell import tell_incidents
from raymlops.state.engine import this_user
from raymlops.state.watch.incidents import baselines_of, record_window

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from raymlops.lifecycle.quality.answers import AskRecipe
    from raymlops.lifecycle.quality.model import QualityModel
    from raymlops.state.store import State


class QualityJudge:
    """Judge what is due of every model. Called once an hour, in a thread that may take minutes."""

    def __init__(self, state: State, *, ask: AskRecipe = ask_here, clock: Callable[[], float] = time.monotonic) -> None:
        """``ask`` returns losses by a recipe's own ``loss_of``, which runs code of the bundle."""
        self._state = state
        self._ask = ask
        self._actor = f"controller of {this_user()}"
        self._each = EachModel(state, undone="its quality was not judged", actor=self._actor, clock=clock)
        self._seen: Seen = {}

    def __call__(self, now: datetime) -> None:
        """Judge what is due; record what fails for a model, and continue with the others."""

        def judge(name: str, hurry: Callable[[], bool]) -> bool:
            model = quality_model(self._state, name, now=now, ask=self._ask)
            judge_due(self._state, model, now=now, actor=self._actor, seen=self._seen, hurry=hurry)
            return True

        # A bundle of an earlier release has nothing to judge by, and some answers have no loss.
        self._each({item.name for item in self._state.deployments() if item.role == "champion"}, judge)
        tell_incidents(self._state, now=now)


def judge_due(
    state: State,
    model: QualityModel,
    *,
    now: datetime,
    actor: str | None = None,
    seen: Seen | None = None,
    hurry: Callable[[], bool] = lambda: False,
) -> None:
    """Judge the windows of a model that are due, until ``hurry`` says that the time is up.

    Raises: as ``due``.
    """
    said = baselines_of(state, model.name)
    for window, alarms in due(state, model, now=now, seen=seen, hurry=hurry):
        record_window(state, window, partial(file_verdict, window, alarms), normal=said, actor=actor)
