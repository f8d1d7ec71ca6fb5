"""``freeze``: nothing of a model is retrained or promoted by the loop, until a time or until it is thawed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from raymlops.errors import UsageError
from raymlops.lifecycle.named_model import chosen_state
from raymlops.lifecycle.prediction_log import parse_moment
from raymlops.records import Record
from raymlops.state.audit import require_why
from raymlops.state.engine import this_user
from raymlops.state.freezes import Freeze
from raymlops.state.freezes import freeze as put_freeze
from raymlops.state.freezes import thaw as end_freeze

if TYPE_CHECKING:
    from datetime import datetime

    from raymlops.lifecycle.sources import Source


@dataclass(frozen=True)
class FreezeRecord(Record):
    """A freeze, and whether it holds now."""

    freeze: Freeze
    holds: bool

    def text(self) -> str:
        """Return it as a line."""
        return self.freeze.text() if self.holds else f"{self.freeze.name} is not frozen any more"


def freeze(name: str, *, why: str, until: str | None = None, config: Source | None = None) -> FreezeRecord:
    """Freeze a model: the loop neither retrains nor promotes anything of it; deploy, promote and rollback still do.

    What is open stays where it is, and goes on afterwards. A model that is frozen already gets this freeze instead.

    Args:
        name: A model.
        why: For the audit record.
        until: When it ends by itself, as ``12h`` or an ISO time; None for when it is thawed.
        config: Its configuration, for the state; else it is as the environment says.

    Raises:
        NotFoundError: no model of that name was ever deployed.
        UsageError: ``why`` is empty, or ``until`` is no time in the future.
        StorageError, UnreachableError: the state cannot be used; nothing was changed.
    """
    require_why(why, "a model was frozen or thawed")
    with chosen_state(name, config) as state:
        now = state.now()
        wanted = Freeze(name, why, this_user(), now, None if until is None else _time(until, now))
        put_freeze(state, wanted)
    return FreezeRecord(wanted, holds=True)


def thaw(name: str, *, why: str, config: Source | None = None) -> FreezeRecord:
    """End the freeze of a model.

    Raises:
        NotFoundError: no model of that name was ever deployed.
        RefusedError: it is not frozen.
        UsageError: ``why`` is empty.
        StorageError, UnreachableError: the state cannot be used; nothing was changed.
    """
    require_why(why, "a model was frozen or thawed")
    with chosen_state(name, config) as state:
        return FreezeRecord(end_freeze(state, name, now=state.now(), actor=this_user(), why=why), holds=False)


def _time(until: str, now: datetime) -> datetime:
    found = parse_moment(until, now=now, ahead=True)
    if found <= now:
        raise UsageError(f"got --until {until}, which is not in the future: it is {now:%Y-%m-%d %H:%M} UTC")
    return found
