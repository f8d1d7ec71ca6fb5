"""The loss of a labelled answer, and one loss per request.

The rule is the **champion's**, from its bundle: it was fixed before the rollout began, and both versions are judged by
it. Both have the same outputs, since other versions cannot be canaries (``compatible``). The rule is one of
``answer_loss``, or the champion's own ``loss_of``: the recipe's code, which runs apart from the process that holds the
state's credentials.

A request's loss is the mean over its labelled rows, and so is what it gains over a blind predictor, whose losses are
those at the labels of both versions together. Which rows count says ``predictions.labelled_rows``: copies, pinned
requests and those that the champion answered for a canary were not assigned at random; an id's first answer counts,
whichever version gave it; and no caller has more than its share of either version's requests.

Owns the loss. ``label_losses`` reads the log.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raymlops.errors import RaymlopsError
from raymlops.lifecycle.quality.answers import as_json, rule_of
from raymlops.monitor.skill.reference import blind_losses
from raymlops.predictions.counts import Losses
from raymlops.predictions.labelled_rows import Rows, admit, first_answers, labelled_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raymlops.answer_loss import AnswerLoss
    from raymlops.bundle.loss import OwnLosses, Pair
    from raymlops.monitor.skill.reference import QualityReference
    from raymlops.predictions.labelled import Labels
    from raymlops.state.store import Deployment

_NO_BLIND = (
    "the loss is the recipe's own, and the bundle keeps no test rows that say what a blind predictor loses: "
    "register a version whose test split has labels"
)


def unasked(champion: Deployment) -> str | None:
    """Return why a rollout against this champion cannot judge quality; None if it can."""
    try:
        rule = rule_of(champion)
    except RaymlopsError as error:
        return f"the bundle of version {champion.version} cannot be read: {error.message}"
    return rule.reason if rule.kind == "none" else None


class Counted:
    """The losses of labelled rows, by request."""

    def __init__(
        self,
        rule: AnswerLoss,
        ask_recipe: Callable[[Sequence[Pair]], OwnLosses],
        labels: Labels,
        *,
        max_caller_share: float | None,
        known: QualityReference | None = None,
    ) -> None:
        """Take the rule and the labels; ``known`` are the champion's test rows, which a recipe's own loss needs."""
        self._rule = rule
        self._known = known
        self._ask_recipe = ask_recipe
        self._labels = labels
        self._most = max_caller_share
        self._rows: list[Rows] = []
        self._note = ""
        self._unlike: tuple[int, Any] = (0, None)
        """How many labels could not be compared with their answers, and the first of them."""
        self.left_out = ""
        """What does not count, as ``losses`` found."""

    def add(self, batch: pa.RecordBatch) -> None:
        """Add rows of the log, labelled or not."""
        at, rows = labelled_rows(batch, self._labels, ["champion", "canary"])
        if not len(at):
            return
        some = batch.take(pa.array(at))
        labels = self._said(rows)
        found = self._values([*zip(map(as_json, some["output"].to_pylist()), labels, strict=True)])
        for label, loss in zip(labels, found, strict=True):
            if loss is None:
                self._unlike = (self._unlike[0] + 1, self._unlike[1] if self._unlike[0] else label)
        values = np.array(found, dtype=np.float64)
        columns = {
            "losses": np.nan_to_num(values, nan=1.0),
            "clipped": np.isnan(values) | ((self._rule.kind == "number") & (values >= 1)),
            "versions": np.asarray(some["model_version"]),
        }
        compared = np.array([loss is not None for loss in found], dtype=np.bool_)
        self._rows.append(Rows({**rows.columns, **columns}).where(compared))

    @property
    def requests(self) -> int:
        """Return how many requests have a loss."""
        return len(np.unique(np.concatenate([np.empty(0), *(part["requests"] for part in self._rows)])))

    def losses(self) -> dict[int | None, Losses]:
        """Return the losses of each version, one per request; if none has any, the reason under None."""
        rows = Rows.joined(self._rows)
        if not len(rows):
            count, label = self._unlike
            unlike = (
                f"none of {count:,} labels, such as {_short(label)}, can be compared with its answer: send others, "
            )
            unlike += "or define loss_of(output, label) in the recipe"
            note = self._note or (unlike if count else "")
            return {None: Losses(note=note)} if note else {}
        rows = rows.where(first_answers(rows))
        _, of, sizes = np.unique(rows["requests"], return_inverse=True, return_counts=True)
        rows.columns["weights"] = 1 / sizes[of]
        found = admit(rows, most=self._most, within=rows["versions"])
        self.left_out = found.note
        if found.refused:
            return {None: Losses(note=found.refused)}
        rows = rows.where(found.rows)
        blind = blind_losses(self._rule, self._said(rows), self._known)
        if blind is None:
            return {None: Losses(note=_NO_BLIND)}
        _, first, of, sizes = np.unique(rows["requests"], return_index=True, return_inverse=True, return_counts=True)
        losses, others, clipped = (
            np.bincount(of, values) / sizes for values in (rows["losses"], blind, rows["clipped"])
        )
        versions = rows["versions"][first]
        each: dict[int | None, Losses] = {}
        for version in np.unique(versions).tolist():
            mine = (versions == version) & np.isfinite(others)  # no test row has another label
            most = int((clipped[mine] > 0.5).sum())
            each[version] = Losses.of(losses[mine], others[mine], clipped=most, note=self._note)
        return each

    def _said(self, rows: Rows) -> list[Any]:
        return [json.loads(text) for text in self._labels.of(rows["places"]).to_pylist()]

    def _values(self, pairs: Sequence[Pair]) -> Sequence[float | None]:
        if self._rule.kind != "recipe":
            return [self._rule.of(output, label) for output, label in pairs]
        if not pairs:
            return []
        found = self._ask_recipe(pairs)
        self._note = self._note or found.failure
        return found.values


def _short(label: Any) -> str:
    text = json.dumps(label)
    return text if len(text) <= 60 else f"{text[:57]}..."
