"""The state that a model's log in a storage belongs to, so that no other one judges, merges or removes its rows.

::

    log-owners/NAME         the id of the state, and a mark that shows a storage which has two names
    states/ID/              the storage in which the state ID keeps its own log, where the other one is not its own

Owns these paths. A replica reads the mark and never sets it: who may is ``lifecycle``'s to decide, since it needs the
record of what was deployed.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from raymlops.storage.filesystem import join
from raymlops.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

OWNERS, STATES = "log-owners", "states"
KEPT_S = 60.0
"""How long a replica runs without another look at the mark: a log changes hands once in its life."""


class Mark(NamedTuple):
    """What a storage says of a log."""

    state: str
    storage: str
    """The same by each name that the storage has."""


def owner_of(store: Store, name: str) -> Mark | None:
    """Return whose a log is; None where nobody said so.

    Raises:
        StorageError: the storage cannot be used.
    """
    path = f"{OWNERS}/{name}"
    size = store.size(path)
    if size is None:
        return None
    try:
        state, _, storage = bytes(store.open(path, size=size).read()).decode(errors="replace").strip().partition(" ")
    except FileNotFoundError:
        return None
    return Mark(state, storage)


def mark_owner(store: Store, name: str, state: str) -> Mark | None:
    """Say that a log that nobody marked belongs to a state; return whose it is then: another's that was first.

    Raises:
        StorageError: the storage cannot be written.
    """
    store.write_new(f"{OWNERS}/{name}", pa.py_buffer(f"{state} {uuid.uuid4().hex}\n".encode()))
    return owner_of(store, name)


def own_storage(uri: str, state: str) -> str:
    """Return the storage of a state's own log below one whose log is another's."""
    return join(uri, STATES, state)


class Place:
    """Where a replica writes the rows and labels of a model."""

    def __init__(
        self, name: str, *, open_store: Callable[[str], Store] = Store, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._open_store = open_store
        self._clock = clock
        self._found: tuple[str, str, str] = ("", "", "")
        self._until = float("-inf")

    def of(self, uri: str, state: str) -> str:
        """Return the storage for a state: ``uri`` itself unless the log in it is another's.

        Raises:
            StorageError: the storage cannot be used.
        """
        if not state:
            return uri
        if self._found[:2] != (uri, state) or self._clock() >= self._until:
            own, mark = own_storage(uri, state), owner_of(self._open_store(uri), self._name)
            is_other = mark is not None and mark.state != state
            if mark is None:  # an earlier release's, which is another's if this state has one of its own already
                is_other = owner_of(self._open_store(own), self._name) is not None
            self._found, self._until = (uri, state, own if is_other else uri), self._clock() + KEPT_S
        return self._found[2]
