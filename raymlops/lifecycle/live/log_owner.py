"""Which rows and labels in a storage are this state's: where several states serve a model, each keeps a log of its own.

Owns who gets a log that nobody has marked: a state that deployed versions which it made in that storage; none that only
adopted them, since their bundles stay where another state keeps its log, and none that finds rows before its first
deploy.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from raymlops.errors import StorageError
from raymlops.lifecycle.live.lineup import BESIDE, ROUTE_ACTIONS
from raymlops.predictions.owner import OWNERS, STATES, Place, mark_owner, own_storage, owner_of
from raymlops.predictions.paths import versions_of
from raymlops.state.audit import subjects_of
from raymlops.state.versions import bundle_uris_of
from raymlops.storage.filesystem import absolute, root_of
from raymlops.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from raymlops.state.store import Deployment, State

_log = logging.getLogger(__name__)


def log_of(champion: Deployment, state_id: str) -> str:
    """Return the storage with a champion's log in a state, into which its replicas write all that it was asked.

    Raises:
        StorageError: the storage cannot be used.
    """
    return Place(champion.name).of(root_of(champion.bundle.uri), state_id)


def own_storages(state: State, name: str, root: str) -> Iterator[tuple[str, str]]:
    """Yield the storages in which a state has rows of a model below one, each with what shows that two are the same.

    Raises:
        StorageError: the storage cannot be used.
    """
    me = state.owner().id
    mark, own = owner_of(Store(root), name), own_storage(root, me)
    own_mark = owner_of(Store(own), name)
    is_mine = own_mark is None and not _is_guest(state, name, root) if mark is None else mark.state == me
    if is_mine:
        yield root, mark.storage if mark else root
    if not is_mine or own_mark is not None:
        yield own, own_mark.storage if own_mark else own


def claim(state: State, name: str, roots: Sequence[str]) -> None:
    """Mark a model's log in each of the storages as this state's, or another one below it where that is another's.

    Raises:
        StorageError: a storage cannot be used.
    """
    me = state.owner().id
    for root in filter(None, roots):  # a bundle that lies in no storage has no log beside it
        store, own = Store(root), Store(own_storage(root, me))
        mark, own_mark = owner_of(store, name), owner_of(own, name)
        if own_mark is None and mark is None and not _is_anothers(state, name, root):
            mark = mark_owner(store, name, me)
        if own_mark is None and (mark is None or mark.state != me):
            mark_owner(own, name, me)


def claim_before_deploy(state: State, name: str, bundle_uri: str) -> tuple[str, ...]:
    """Mark the log that the replicas of a bundle write; return a warning where that is left to the controller.

    Raises:
        StorageError: the storage cannot be used, and the replicas would write into another state's log.
    """
    root = root_of(bundle_uri)
    try:
        claim(state, name, [root])
    except StorageError as error:
        if _is_anothers(state, name, root):
            raise StorageError(
                f"the log of {name} in {root} is another state's, and its own folder cannot be made: {error.message}",
                hint="Allow this user to write there, or set serve.log.enabled=false.",
            ) from error
        return (f"the controller marks the log of {name} as this state's, since this user cannot: {error.message}",)
    return ()


def read_from(name: str, path: str, state_id: Callable[[], str]) -> str:
    """Return where a state's rows of a model are: below the configured storage, where the log in that is another's.

    Raises:
        StorageError, UnreachableError: the storage cannot be used, or the state, which is asked only where it matters.
    """
    root = absolute(path)
    if not Store(root).folders(STATES):
        return path
    me = state_id()
    mark, own = owner_of(Store(root), name), own_storage(root, me)
    if mark is not None and mark.state == me:
        return path
    return own if owner_of(Store(own), name) is not None or versions_of(Store(own), name) else path


def unclaimed(state: State, name: str, roots: Sequence[str]) -> list[str]:
    """Return the storages in which rows may be this state's, and nobody said so, with what to do, in sentences."""
    me, found = state.owner().id, []
    for root in roots:
        try:
            has_own = owner_of(Store(own_storage(root, me)), name) is not None
            if owner_of(Store(root), name) is None and (has_own or _is_guest(state, name, root)):
                found.append(
                    f"{root}/predictions/{name}: made by another state; where it is this one's, "
                    f"write {me} into {root}/{OWNERS}/{name}"
                )
        except StorageError as error:
            _log.info("%s", error)
    return found


def _is_anothers(state: State, name: str, root: str) -> bool:
    """Return whether what nobody marked is another state's."""
    if _is_guest(state, name, root):
        return True
    was_live = state.deployments(name) or name in subjects_of(state, (*ROUTE_ACTIONS, BESIDE))
    return not was_live and bool(versions_of(Store(root), name))


def _is_guest(state: State, name: str, root: str) -> bool:
    """Return whether all versions of a model whose bundles are in a storage were made by another state."""
    here = [version for version, uri in bundle_uris_of(state, name) if root_of(uri) == root]
    if not here:
        return False
    adopted = set(subjects_of(state, ("adopt",)))
    return all(f"{name}/{version}" in adopted for version in here)
