"""The losses of the labelled answers of versions, from 0 to 1, as read from the prediction log for a rollout.

Owns which rows of the log are read, and the process in which a recipe's own ``loss_of`` runs. What a loss is stands in
``loss_rule``, when to read in ``loss_reader``.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from raymlops.answer_loss import AnswerLoss
from raymlops.bundle.loss import own_losses
from raymlops.errors import BundleError, NotFoundError, RecipeError
from raymlops.lifecycle.live.lineup import champion_of, monitored
from raymlops.lifecycle.live.log_owner import log_of
from raymlops.lifecycle.quality.answers import rule_of, test_rows
from raymlops.lifecycle.rollout.loss_reader import LogLosses
from raymlops.lifecycle.rollout.loss_rule import Counted
from raymlops.predictions.counts import Losses
from raymlops.predictions.labelled_rows import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raymlops.bundle.loss import OwnLosses, Pair
    from raymlops.lifecycle.quality.answers import AskRecipe
    from raymlops.lifecycle.rollout.loss_reader import Window
    from raymlops.records import BundleRef
    from raymlops.state.store import State

MAX_LABEL_BYTES = 32 * 2**20
"""Of labels held at a time, about half a million with ids of 36 characters; they are sorted in five times that."""
EXPECTED_FOR = timedelta(days=7)
"""Labels that arrived so long before a rollout announce those of its answers."""
ANSWER_S = 120.0
"""For thousands of answers, the start of a process and its imports."""


def ask_in_task(bundle: BundleRef, pairs: Sequence[Pair], *, timeout_s: float = ANSWER_S) -> OwnLosses:
    """Return the losses of answers by the ``loss_of`` of a bundle's recipe, computed in a Ray task.

    The controller's process holds the credentials of the state and moves every rollout, so that it runs no recipe,
    which may hang, exit or read the process's memory.

    Raises:
        RecipeError: it did not answer in time, or its process exited.
        BundleError, RecipeImportError, StorageError: as ``own_losses``.
    """
    import ray

    task = ray.remote(num_cpus=0, max_retries=0)(own_losses)
    ref = task.remote(bundle.uri, bundle.digest, list(pairs))
    try:
        found: OwnLosses = ray.get(ref, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        ray.cancel(ref, force=True)
        raise RecipeError(f"loss_of did not answer for {len(pairs):,} rows within {timeout_s:g} s") from error
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        raise RecipeError(f"the process that ran loss_of ended: {type(error).__name__}") from error
    return found


class LabelLosses:
    """Read losses from the log of the models that are live, which may take minutes."""

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
        """Return those in each window; none without labels, which a listing of their folder shows.

        If there can be none, or a recipe's ``loss_of`` raises, their ``note`` says why.

        Raises:
            StorageError: the log or the champion's bundle cannot be read.
            RaymlopsError: the recipe's ``loss_of`` cannot be asked: its code does not import, hangs or exits.
        """
        from raymlops.predictions.labelled import load_labels
        from raymlops.predictions.partition import Faults
        from raymlops.predictions.paths import label_days
        from raymlops.predictions.read import Reading
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
        known = None
        if rule.kind == "recipe":
            with suppress(NotFoundError):
                known = test_rows(champion)
        # Its replicas write what every version beside it answers.
        root = log_of(champion, self._state.owner().id)
        store, since = Store(root), min(window.since for window in windows)
        if label_days(store, name, since=since - EXPECTED_FOR):
            labelled()
        faults = Faults()
        labels = load_labels(store, name, faults, since=since, max_bytes=self.max_label_bytes)
        found: dict[Window, Mapping[int | None, Losses]] = {}
        share, said = monitored(champion).skill.max_caller_share, list[str]()
        for window in windows:
            ask = partial(self._ask_recipe, champion.bundle)
            counted = Counted(rule, ask, labels, max_caller_share=share, known=known)
            if len(labels.hashes) and (window.until is None or window.until > window.since):
                with suppress(NotFoundError):  # nothing was logged yet
                    reading = Reading(root, name, **window._asdict(), columns=(*COLUMNS, "output"), labels=False)
                    for batch in reading:
                        counted.add(batch)
                    faults.damaged.update(reading.damaged)
            found[window] = counted.losses()
            said += [counted.left_out] if counted.left_out else []
        if labels.every > 1:
            most = f"{self.max_label_bytes // 1024:,} KiB"
            said.append(f"labels take more than {most}, so that those of one in {labels.every:,} rows are read")
        if faults.damaged:
            said.append(f"damaged and left out: {len(faults.damaged)} files, such as {min(faults.damaged)}")
        return LogLosses(found, "; ".join(said))
