"""Who holds the route and who stands warm beside it. Pure: deployments in, deployments out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from raymlops.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.state.store import AuditEvent, Deployment


def with_champion(before: Sequence[Deployment], new: Deployment) -> list[Deployment]:
    """Return the line-up with ``new`` as champion and the champion of before kept warm; older ones are dropped.

    Where ``new`` is champion already, with the same settings, the line-up stays as it is.
    """
    old = champion_of(before)
    if old is not None and old.version == new.version:
        return [_refreshed(item, new) if item.version == new.version else item for item in before]
    champion = next((_refreshed(item, new) for item in before if item.version == new.version), new)
    warm = [replace(old, role="warm")] if old is not None else []
    return sorted([replace(champion, role="champion"), *warm], key=lambda item: item.version)


def beside(before: Sequence[Deployment], new: Deployment) -> list[Deployment]:
    """Return the line-up with ``new`` up, without a route; a version that is up keeps its role."""
    if any(item.version == new.version for item in before):
        return [_refreshed(item, new) if item.version == new.version else item for item in before]
    return sorted([*before, replace(new, role="warm")], key=lambda item: item.version)


def previous_champion(before: Sequence[Deployment], changes: Sequence[AuditEvent]) -> Deployment:
    """Return the version that was champion before the one that is, as the audit record (newest first) has it.

    A change that was undone, and a champion that was itself rolled back from, do not count. Taking the model down
    and deploying it again forgets nothing. A version that stands warm is returned as it stands, so that it can take the
    route without a restart.

    Raises:
        NotFoundError: the model is not served, or there was no champion before.
    """
    from raymlops.state.store import Deployment

    current = champion_of(before)
    if current is None:
        raise NotFoundError("the model is not served, so there is nothing to roll back")
    known: dict[int, Deployment] = {}
    champions: list[int] = []  # oldest first; the last one is the one that is
    saved: list[int] = []
    for event in reversed(changes):
        if event.action.endswith(".undone"):
            champions = saved
            continue
        saved = list(champions)
        was, became = ([Deployment.from_dict(item) for item in side] for side in (event.before, event.after))
        known |= {item.version: item for item in (*was, *became)}
        for champion in (champion_of(was), champion_of(became)):
            if champion is None or champion.version == (champions[-1] if champions else None):
                continue
            if event.action == "rollback" and champion.version in champions[:-1]:
                del champions[_last(champions, champion.version) + 1 :]
            else:
                champions.append(champion.version)
    earlier = [number for number in champions if number != current.version]
    if current.version in champions:
        earlier = [number for number in champions[: _last(champions, current.version)] if number != current.version]
    if not earlier:
        raise NotFoundError(f"no version was champion before version {current.version}")
    standing = {item.version: item for item in before}
    return standing.get(earlier[-1], known[earlier[-1]])


def champion_of(deployments: Sequence[Deployment]) -> Deployment | None:
    """Return the one that holds the route, None where none does."""
    return next((item for item in deployments if item.role == "champion"), None)


def _last(numbers: Sequence[int], number: int) -> int:
    return max(index for index, item in enumerate(numbers) if item == number)


def _refreshed(item: Deployment, new: Deployment) -> Deployment:
    """Return ``item`` with the settings of ``new``; its role and age stay."""
    return replace(item, serve=new.serve or item.serve)
