"""How wrong the labelled answers of versions were, from 0 to 1, for the decision on a rollout.

Owns which rows of the log are read for it. What a loss is stands in ``lossrule``, when to read in ``lossreader``.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from raymlops.answer_loss import AnswerLoss
from raymlops.bundle.loss import OwnLosses, own_losses
from raymlops.errors import BundleError, NotFoundError, RaymlopsError
from raymlops.lifecycle.live.lineup import champion_of
from raymlops.lifecycle.rollout.loss_reader import LogLosses
from raymlops.lifecycle.rollout.loss_rule import COLUMNS, Counted, rule_of
from raymlops.predictions.counts import Losses
from raymlops.storage.filesystem import root_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raymlops.bundle.loss import Pair
    from raymlops.lifecycle.rollout.loss_reader import Window
    from raymlops.predictions.labelled import Labels
    from raymlops.records import BundleRef
    from raymlops.state.store import State

    AskRecipe = Callable[[BundleRef, Sequence[Pair]], OwnLosses]
    """Returns the losses of answers by the ``loss_of`` of a bundle's recipe."""

MAX_LABEL_BYTES = 32 * 2**20
"""Of labels held at a time, about half a million with ids of 36 characters; they are sorted in five times that."""

_log = logging.getLogger(__name__)


class LabelLosses:
    """Read losses from the log of the models that are live. May take minutes: call it beside what is not to wait."""

    def __init__(
        self,
        state: State,
        *,
        ask_recipe: AskRecipe = lambda bundle, pairs: own_losses(bundle.uri, bundle.digest, pairs),
    ) -> None:
        self._state = state
        self._ask_recipe = ask_recipe
        self.max_label_bytes = MAX_LABEL_BYTES

    def __call__(self, name: str, windows: Sequence[Window], *, labelled: Callable[[], None]) -> LogLosses:
        """Return those in each window; none where there is no label, of which a look at their folder tells.

        Where there can be none, or a recipe's ``loss_of`` fails, their ``note`` says why.

        Raises:
            StorageError: the log or the champion's bundle cannot be read.
        """
        from raymlops.predictions.labelled import load_labels
        from raymlops.predictions.partition import Faults
        from raymlops.storage.store import Store

        champion = champion_of(self._state.deployments(name))
        if champion is None or not windows:
            return LogLosses({window: {} for window in windows})
        try:
            rule = rule_of(champion)
        except BundleError as error:
            rule = AnswerLoss.none(f"the bundle of version {champion.version} cannot be read: {error.message}")
        if rule.kind == "none":
            return LogLosses({window: {None: Losses(note=rule.reason)} for window in windows})
        root = root_of(champion.bundle.uri)  # its replicas write what every version beside it answers
        since = min(window.since for window in windows)
        labels = load_labels(Store(root), name, Faults(), since=since, max_bytes=self.max_label_bytes)
        if not len(labels.hashes):
            return LogLosses({window: {} for window in windows})
        labelled()
        found: dict[Window, Mapping[int | None, Losses]] = {}
        for window in windows:
            counted = Counted(rule, lambda pairs: self._ask(champion.bundle, pairs))
            _read(counted, root, name, window=window, labels=labels)
            found[window] = counted.losses()
        if labels.every == 1:
            return LogLosses(found)
        most = f"{self.max_label_bytes // 1024:,} KiB"
        return LogLosses(found, f"labels take more than {most}, so that those of one in {labels.every:,} rows are read")

    def _ask(self, bundle: BundleRef, pairs: Sequence[Pair]) -> OwnLosses:
        try:
            return self._ask_recipe(bundle, pairs)
        except RaymlopsError as error:
            _log.warning("the loss_of of %s cannot be asked: %s", bundle.uri, error)
            return OwnLosses([None] * len(pairs), f"loss_of cannot be asked: {error.message}")


def _read(counted: Counted, root: str, name: str, *, window: Window, labels: Labels) -> None:
    """Count the labelled rows of the log that are in a window."""
    from raymlops.predictions.read import Reading

    since, until = window
    if until is not None and until <= since:
        return
    try:
        found = Reading(root, name, since=since, until=until, columns=COLUMNS, labels=labels, only_labelled=True)
    except NotFoundError:
        return  # nothing was logged yet
    for batch in found:
        counted.add(batch.to_pylist())
