"""How wrong the labelled answers of a version were, from 0 to 1, for the decision on a rollout.

Owns when and how the log is read for it. What a loss is stands in ``lossrule``.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from raymlops.answerloss import AnswerLoss
from raymlops.bundle.loss import OwnLosses, own_losses
from raymlops.bundle.place import root_of
from raymlops.errors import NotFoundError, RaymlopsError
from raymlops.lifecycle.lineup import champion_of
from raymlops.lifecycle.lossrule import COLUMNS, Counted, rule_of
from raymlops.predictions.counts import Losses

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from raymlops.bundle.loss import Pair
    from raymlops.records import BundleRef
    from raymlops.state.store import State

    AskRecipe = Callable[[BundleRef, Sequence[Pair]], OwnLosses]
    """Returns the losses of answers by the ``loss_of`` of a bundle's recipe."""

READ_EVERY_S = 30.0
"""Labels come minutes to days late; reading the log for them each second would be for nothing."""

_log = logging.getLogger(__name__)


class LabelLosses:
    """Read losses from the log of the models that are live, at most twice a minute a version and window."""

    def __init__(
        self,
        state: State,
        *,
        ask_recipe: AskRecipe = lambda bundle, pairs: own_losses(bundle.uri, bundle.digest, pairs),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._ask_recipe = ask_recipe
        self._clock = clock
        self._known: dict[tuple[str, datetime, datetime | None], tuple[float, dict[int | None, Losses]]] = {}

    def __call__(self, name: str, version: int, since: datetime, until: datetime | None) -> Losses:
        """Return those of requests that arrived from ``since`` on, before ``until``; none where there is no log.

        Where there can be none, or a recipe's ``loss_of`` fails, their ``note`` says why.
        """
        key = (name, since, until)
        at, losses = self._known.get(key, (float("-inf"), {}))
        if self._clock() - at >= READ_EVERY_S:
            losses = self._read(name, since, until)
            self._known = {
                known: entry for known, entry in self._known.items() if known[0] != name or known[1] >= since
            }
            self._known[key] = (self._clock(), losses)
        return losses.get(version, losses.get(None, Losses()))

    def _read(self, name: str, since: datetime, until: datetime | None) -> dict[int | None, Losses]:
        from raymlops.predictions.read import read_predictions

        champion = champion_of(self._state.deployments(name))
        if champion is None:
            return {}
        try:
            rule = rule_of(champion)
        except RaymlopsError as error:
            rule = AnswerLoss.none(f"the bundle of version {champion.version} cannot be read: {error.message}")
        if rule.kind == "none":
            return {None: Losses(note=rule.reason)}
        try:
            found = read_predictions(root_of(champion.bundle.uri), name, since=since, until=until, columns=COLUMNS)
        except NotFoundError:
            return {}  # nothing was logged yet
        counted = Counted(rule, lambda pairs: self._ask(champion.bundle, pairs))
        for batch in found:
            counted.add(batch.filter(pc.is_valid(batch["label"])).to_pylist())
        return counted.losses()

    def _ask(self, bundle: BundleRef, pairs: Sequence[Pair]) -> OwnLosses:
        try:
            return self._ask_recipe(bundle, pairs)
        except RaymlopsError as error:
            _log.warning("the loss_of of %s cannot be asked: %s", bundle.uri, error)
            return OwnLosses([None] * len(pairs), f"loss_of cannot be asked: {error.message}")
