"""What holds the loop: why nothing of a retraining is begun, gets a larger share of the traffic, or is promoted. Pure.

It is asked of what is desired in the transaction of each change, so that it holds what is decided or on its way too.
Nothing that a person began is held, and no rollback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.config.retrain import RetrainSection
from raymlops.config.stored import read_stored
from raymlops.lifecycle.live.lineup import champion_of, retrained

if TYPE_CHECKING:
    from datetime import datetime

    from raymlops.state.loop import Retraining
    from raymlops.state.store import Model


def why_begun(one: Retraining) -> str:
    """Return the reason for what a retraining begins, by which it is known from what a person began.

    Earlier releases gave the same one.
    """
    return f"{_mark(one)}{one.why}"


def hold_of(model: Model, *, now: datetime) -> str:
    """Return why nothing of the model's open retraining goes on; empty if it may.

    That is a freeze, an open incident, or an autonomy that was lowered since. A person who retrains a model during an
    incident means it, and so does one who accepted a proposal whatever the autonomy is by now.
    """
    one = model.retraining
    if one is None:
        return ""
    if model.freeze is not None and model.freeze.holds(now):
        return model.freeze.text()
    if one.trigger == "person":
        return ""
    if model.incidents:
        return f"nothing during an incident: {model.incidents[0].text()}"
    champion = champion_of(model.deployments)
    if champion is None or any(entry["stage"] == "proposed" for entry in one.stages):
        return ""
    allowed, began = retrained(champion).autonomy, read_stored(RetrainSection, one.settings).autonomy
    if began == "act" and allowed != "act":
        return (
            f"retrain.autonomy is {allowed} now, and it began by itself: it goes on once that is act again, "
            f"raymlops proposals reject {one.id} ends it, and raymlops rollback {model.name} once it has a share"
        )
    return ""


def held(model: Model, why: str, *, now: datetime) -> str:
    """Return what holds that which was begun for a reason; empty if nothing does, or a person began it."""
    mine = model.retraining is not None and why.startswith(_mark(model.retraining))
    return hold_of(model, now=now) if mine else ""


def _mark(one: Retraining) -> str:
    return f"retraining {one.id}: "
