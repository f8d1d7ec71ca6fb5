"""Write what is to be told of incidents, once a look at all models is over, or once a person decided."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from raymlops.lifecycle.live.lineup import champion_of, monitored
from raymlops.lifecycle.watch.messaging.messages import due_messages
from raymlops.state.watch.incidents import tell

if TYPE_CHECKING:
    from datetime import datetime

    from raymlops.state.store import State


def tell_incidents(state: State, *, now: datetime) -> None:
    """Write the messages that are due about the incidents of all models, by what each model notifies.

    Raises:
        StorageError, UnreachableError: the state cannot be written; nothing was changed.
    """
    champions = ((name, champion_of(state.deployments(name))) for name in {item.name for item in state.deployments()})
    notify = {name: monitored(champion).notify for name, champion in champions if champion is not None}
    tell(state, partial(due_messages, notify_of=notify.get, now=now))
