"""``retrain``: a person is the reason why a model is retrained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from raymlops.lifecycle.loop.decision import retrain_by_person
from raymlops.lifecycle.named_model import chosen_state
from raymlops.records import Record
from raymlops.state.audit import require_why
from raymlops.state.engine import this_user

if TYPE_CHECKING:
    from raymlops.lifecycle.sources import Source
    from raymlops.state.loop import Retraining


@dataclass(frozen=True)
class RetrainRecord(Record):
    """A retraining that a person began."""

    retraining: Retraining

    def text(self) -> str:
        """Return it as a line."""
        return f"{self.retraining.text()}; the controller runs it: raymlops status {self.retraining.name}"


def retrain(name: str, *, why: str, config: Source | None = None) -> RetrainRecord:
    """Retrain a live model, and promote the new version if it passes; the controller does it, stage by stage.

    Neither cool-down nor budget holds it back, and it counts for both.

    Args:
        name: A model.
        why: For the audit record.
        config: Its configuration, for the state; else it is as the environment says.

    Raises:
        NotFoundError: no model of that name was ever deployed.
        RefusedError: it is not live or frozen, or a rollout or another retraining of it runs.
        UsageError: ``why`` is empty.
        StorageError, UnreachableError: the state cannot be used; nothing was changed.
    """
    require_why(why, "a model was retrained")
    with chosen_state(name, config) as state:
        return RetrainRecord(retrain_by_person(state, name, now=state.now(), why=why, actor=this_user()))
