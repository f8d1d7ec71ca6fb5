"""By which rule a live version's answers are compared with labels, and how answers in the log look to it.

Owns what keeps answers from being compared. The rules are ``answer_loss``'s.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.answer_loss import AnswerLoss
from raymlops.bundle.loss import read_loss
from raymlops.bundle.quality import quality_of
from raymlops.column_types import TIME, write_time
from raymlops.errors import BundleError
from raymlops.lifecycle.registration.compatibility import signature_of
from raymlops.monitor.skill.reference import QualityReference
from raymlops.serving.control.render import settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raymlops.bundle.loss import OwnLosses, Pair
    from raymlops.records import BundleRef
    from raymlops.state.store import Deployment

    AskRecipe = Callable[[BundleRef, Sequence[Pair]], OwnLosses]
    """Returns the losses of answers by the ``loss_of`` of a bundle's recipe."""

ADVICE = "train and register again, where that is not enough with loss_of(output, label) in the recipe"


def rule_of(champion: Deployment) -> AnswerLoss:
    """Return the rule by which a champion's answers, and those of versions beside it, are compared with labels.

    It is of the kind ``none``, with the reason, if its bundle allows no other or the log lacks what it needs.

    Raises:
        BundleError: the bundle does not match its digest.
        StorageError: the storage cannot be read.
    """
    log = settings_of(champion).log
    if not log.enabled:
        return AnswerLoss.none("the prediction log is off; set serve.log.enabled")
    rule = read_loss(champion.bundle.uri, champion.bundle.digest)
    if rule.kind == "none":
        return AnswerLoss.none(f"{rule.reason}; {ADVICE}")
    if log.redact:
        needed = rule.columns or [column.name for column in signature_of(champion.bundle).outputs]
        if hidden := sorted({*log.redact} & {*needed}):
            return AnswerLoss.none(f"serve.log.redact leaves {', '.join(hidden)} out of the log")
    return rule


def test_rows(champion: Deployment) -> QualityReference:
    """Return what a champion's bundle keeps of its test rows.

    Raises:
        NotFoundError: it keeps nothing.
        BundleError: the bundle does not match its digest, or a newer raymlops wrote it.
        StorageError: the storage cannot be read.
    """
    try:
        return QualityReference.from_dict(quality_of(champion.bundle.uri, champion.bundle.digest))
    except ValueError as error:
        raise BundleError(f"{champion.bundle.uri}: {error}", hint="Upgrade raymlops here.") from error


def as_json(output: Mapping[str, Any]) -> dict[str, Any]:
    """Return outputs as they were sent to the caller: the log has times of its own type."""
    times = {name: value for name, value in output.items() if isinstance(value, datetime)}
    texts = write_time(np.array([value.replace(tzinfo=None) for value in times.values()], TIME)) if times else []
    return {**output, **dict(zip(times, texts, strict=True))}
