"""What a message about a retraining says: what triggered it, where it is, and which commands to run next. Pure.

Knows nothing of who gets it. What people and columns are called is anybody's text, and shown as such.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.lifecycle.watch.messaging.messages import MAX_BODY, shown
from raymlops.state.loop import WAITING
from raymlops.state.watch.messages import Message

if TYPE_CHECKING:
    from datetime import datetime

    from raymlops.state.loop import Retraining, Stage
    from raymlops.state.watch.messages import Told

WHAT: dict[Stage, Told] = {
    "decided": "decided",
    "proposed": "proposed",
    "baking": "promoted",
    "done": "done",
    "stopped": "stopped",
    "taken_back": "taken_back",
}
"""What somebody is told at a stage; of other stages nobody is."""
_MAX_WHY = 300


def message_about(retraining: Retraining, *, now: datetime) -> Message | None:
    """Return the message that a retraining is at its stage, or waits there; None where that is not told.

    All messages about one retraining have one title, by which mail programs join them, and one id a stage, so that each
    is sent once.
    """
    what: Told | None = WHAT.get(retraining.stage)
    if retraining.found.get(WAITING) == retraining.stage:
        what = "waiting"
    if what is None:
        return None
    if what == "promoted" and "baking" in retraining.found:
        what = "worse"
    name, id_ = retraining.name, retraining.id
    body = "\n".join([_head(retraining, what), "Next:", *_commands(retraining, what)])
    title = f"{name}: retraining of version {retraining.champion} (retraining {id_})"
    told = what if what == "worse" else retraining.stage + ("-waiting" if what == "waiting" else "")
    return Message(f"{id_}-{told}", id_, what, title, body[:MAX_BODY], now)


def _head(one: Retraining, what: Told) -> str:
    why, note = shown(one.why, _MAX_WHY), shown(one.note, _MAX_WHY)
    version = f"version {one.version}" if one.version is not None else "the new version"
    if what == "decided" and not one.is_open:
        return f"Would be retrained, if retrain.autonomy were not observe: {why}."
    again = f"It began with: {why}. The same evidence does not trigger another retraining."
    return {
        "decided": f"Retraining begins: {why}.",
        "proposed": f"A retraining is proposed, and waits for a person: {why}.",
        "waiting": f"Waiting since {one.stage_at:%Y-%m-%d %H:%M} UTC ({one.stage.replace('_', ' ')}): {note}.",
        "promoted": f"Promoted: {version} answers now, and is taken back if it is worse. It began with: {why}.",
        "worse": f"Worse: {note}.",
        "done": f"Done: {note}",
        "stopped": f"Stopped: {note}. {again}",
        "taken_back": f"Taken back: {version}: {note}. {again}",
    }[what]


def _commands(one: Retraining, what: Told) -> list[str]:
    name = one.name
    if one.stage == "proposed":
        return [
            f"raymlops proposals list {name}",
            f"raymlops proposals accept {one.id} --why TEXT",
            f"raymlops proposals reject {one.id} --why TEXT",
        ]
    if what == "waiting":
        end = f"rollback {name}" if one.stage == "rolling_out" else f"proposals reject {one.id} --why TEXT"
        return [f"raymlops status {name}", f"to end it: raymlops {end}"]
    if what == "promoted":
        return [f"raymlops status {name}", f"if the version before was better: raymlops rollback {name}"]
    if what == "worse":
        return [f"raymlops status {name}", f"to do it now: raymlops rollback {name}"]
    if what == "decided" and one.is_open:
        return [f"raymlops status {name}", f"to hold it: raymlops freeze {name} --why TEXT"]
    return [f"raymlops status {name}", f"raymlops retrain {name} --why TEXT"]
