"""The loss of a labelled answer, and one loss per request.

The rule is the **champion's**, from its bundle: it was fixed before the rollout began, and both versions are judged by
it. Both have the same outputs, since other versions cannot be canaries (``compatible``). The rule is one of
``answer_loss``, or the champion's own ``loss_of``: the recipe's code, which runs apart from the process that holds the
state's credentials.

A request's loss is the mean over its labelled rows, and so is what it gains over a blind predictor, whose losses are
those at the labels of both versions together. If a client repeated a request id in the same step, the first answer
alone counts, whichever version gave it: later ones may be about other rows, and only those of the same version could be
added. Copies, pinned requests and those that the champion answered for a canary do not count: they were not assigned at
random.

Owns both. ``label_losses`` reads the labelled rows.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.errors import RaymlopsError
from raymlops.lifecycle.quality.answers import as_json, rule_of
from raymlops.monitor.skill.reference import blind_losses
from raymlops.predictions.counts import Losses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from raymlops.answer_loss import AnswerLoss
    from raymlops.bundle.loss import OwnLosses, Pair
    from raymlops.monitor.skill.reference import QualityReference
    from raymlops.state.store import Deployment

COLUMNS = ("request_id", "caller", "ts", "model_version", "route", "fallback_from", "output")
"""Columns of the log that ``Counted`` needs, beside the label."""

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


@dataclass(slots=True)
class _Request:
    version: int
    arrived: Any
    losses: list[float] = field(default_factory=list)
    """Of its rows."""
    labels: list[Any] = field(default_factory=list)
    clipped: int = 0


class Counted:
    """The losses of labelled rows, by request."""

    def __init__(
        self,
        rule: AnswerLoss,
        ask_recipe: Callable[[Sequence[Pair]], OwnLosses],
        known: QualityReference | None = None,
    ) -> None:
        """Take the rule; ``known`` are the champion's test rows, which a recipe's own loss needs."""
        self._rule = rule
        self._known = known
        self._ask_recipe = ask_recipe
        self._requests: dict[tuple[str | None, str], _Request] = {}
        """By caller and id: another caller may use the same ids."""
        self._note = ""
        self._unlike: tuple[int, Any] = (0, None)
        """How many labels could not be compared with their answers, and the first of them."""

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add labelled rows of the log."""
        shared = [row for row in rows if row["route"] in {"champion", "canary"} and row["fallback_from"] is None]
        pairs: list[Pair] = [(as_json(row["output"]), json.loads(row["label"])) for row in shared]
        for row, (_, label), loss in zip(shared, pairs, self._values(pairs), strict=True):
            if loss is None:
                count, first = self._unlike
                self._unlike = (count + 1, first if count else label)
                continue
            key, version, arrived = (row.get("caller"), row["request_id"]), row["model_version"], row["ts"]
            known = self._requests.get(key)
            if known is None or arrived < known.arrived:
                known = self._requests[key] = _Request(version, arrived)
            if (known.version, known.arrived) == (version, arrived):
                known.losses.append(1.0 if math.isnan(loss) else loss)
                known.labels.append(label)
                known.clipped += math.isnan(loss) or (self._rule.kind == "number" and loss >= 1)

    @property
    def requests(self) -> int:
        """Return how many requests have a loss."""
        return len(self._requests)

    def losses(self) -> dict[int | None, Losses]:
        """Return the losses of each version, one per request; if none has any, the reason under None."""
        requests = [*self._requests.values()]
        count, label = self._unlike
        if not requests:
            unlike = (
                f"none of {count:,} labels, such as {_short(label)}, can be compared with its answer: send others, "
            )
            unlike += "or define loss_of(output, label) in the recipe"
            note = self._note or (unlike if count else "")
            return {None: Losses(note=note)} if note else {}
        blind = blind_losses(self._rule, [label for one in requests for label in one.labels], self._known)
        if blind is None:
            return {None: Losses(note=_NO_BLIND)}
        sizes = np.array([len(one.labels) for one in requests])
        starts = np.cumsum(sizes) - sizes
        rows = np.array([loss for one in requests for loss in one.losses])
        losses, others = (np.add.reduceat(values, starts) / sizes for values in (rows, blind))
        clipped = np.array([2 * one.clipped > len(one.labels) for one in requests])
        versions = np.array([one.version for one in requests])
        found: dict[int | None, Losses] = {}
        for version in dict.fromkeys(versions.tolist()):
            mine = (versions == version) & np.isfinite(others)  # no test row has another label
            found[version] = Losses.of(losses[mine], others[mine], clipped=int(clipped[mine].sum()), note=self._note)
        return found

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
