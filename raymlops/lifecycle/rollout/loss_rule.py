"""The loss of a labelled answer, and one loss per request.

The rule is the **champion's**, from its bundle: it was fixed before the rollout began, and both versions are judged by
it. Both have the same outputs, since other versions cannot be canaries (``compatible``). The rule is one of
``answer_loss``, or the champion's own ``loss_of``: the recipe's code, which runs apart from the process that holds the
state's credentials.

A request's loss is the mean over its labelled rows, and its weight that of the log's sample. If a client repeated a
request id in the same step, the first answer alone counts, whichever version gave it: later ones may be about other
rows, and only those of the same version could be added. Copies, pinned requests and those that the champion answered
for a canary do not count: they were not assigned at random.

Losses are kept in hundredths (``Losses``). Each one is rounded up or down at random, by a hash of its request's id: the
mean of many is that of the losses, however small they are, and both versions' would be rounded alike.

Owns both. ``label_losses`` reads the labelled rows.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from zlib import crc32

from raymlops.errors import RaymlopsError
from raymlops.lifecycle.quality.answers import as_json, rule_of
from raymlops.predictions.counts import Losses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from raymlops.answer_loss import AnswerLoss
    from raymlops.bundle.loss import OwnLosses, Pair
    from raymlops.state.store import Deployment

COLUMNS = ("request_id", "caller", "ts", "model_version", "route", "fallback_from", "weight", "output")
"""Columns of the log that ``Counted`` needs, beside the label."""


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
    weight: float
    total: float = 0.0
    rows: int = 0
    clipped: int = 0


class Counted:
    """The losses of labelled rows, by request."""

    def __init__(self, rule: AnswerLoss, ask_recipe: Callable[[Sequence[Pair]], OwnLosses]) -> None:
        self._rule = rule
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
                known = self._requests[key] = _Request(version, arrived, row.get("weight") or 1.0)
            if (known.version, known.arrived) == (version, arrived):
                known.total += 1.0 if math.isnan(loss) else loss
                known.rows += 1
                known.clipped += math.isnan(loss) or (self._rule.kind == "number" and loss >= 1)

    def losses(self) -> dict[int | None, Losses]:
        """Return the losses of each version, one per request; if none has any, the reason under None."""
        of_version: dict[int | None, list[tuple[str, _Request]]] = defaultdict(list)
        for (_, request_id), request in self._requests.items():
            of_version[request.version].append((request_id, request))
        count, label = self._unlike
        if not of_version:
            unlike = (
                f"none of {count:,} labels, such as {_short(label)}, can be compared with its answer: send others, "
            )
            unlike += "or define loss_of(output, label) in the recipe"
            note = self._note or (unlike if count else "")
            return {None: Losses(note=note)} if note else {}
        return {
            version: Losses.of(
                (_rounded(one.total / one.rows, request_id) for request_id, one in requests),
                weights=(one.weight for _, one in requests),
                clipped=sum(2 * one.clipped > one.rows for _, one in requests),
                note=self._note,
            )
            for version, requests in of_version.items()
        }

    def _values(self, pairs: Sequence[Pair]) -> Sequence[float | None]:
        if self._rule.kind != "recipe":
            return [self._rule.of(output, label) for output, label in pairs]
        if not pairs:
            return []
        found = self._ask_recipe(pairs)
        self._note = self._note or found.failure
        return found.values


def _rounded(loss: float, request_id: str) -> float:
    return math.floor(100 * loss + crc32(request_id.encode()) / 2**32) / 100


def _short(label: Any) -> str:
    text = json.dumps(label)
    return text if len(text) <= 60 else f"{text[:57]}..."
