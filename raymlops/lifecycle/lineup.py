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
    old = _champion(before)
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


def previous_champion(before: Sequence[Deployment], events: Sequence[AuditEvent]) -> Deployment:
    """Return the version that was champion before the one that is, as the audit record (newest first) has it.

    A change that was undone, and a champion that was itself rolled back from, do not count.

    Raises:
        NotFoundError: the model is not served, or there was no champion before.
    """
    from raymlops.state.store import Deployment

    current = _champion(before)
    if current is None:
        raise NotFoundError("the model is not served, so there is nothing to roll back")
    skipped = {current.version}
    undone = False
    for event in events:
        if not isinstance(event.before, list) or not isinstance(event.after, list):
            continue
        if event.action.endswith(".undone") or undone:
            undone = event.action.endswith(".undone")
            continue
        was, became = (_champion([Deployment.from_dict(item) for item in side]) for side in (event.before, event.after))
        if event.action == "rollback" and was is not None:
            skipped.add(was.version)
        elif became is not None and became.version in skipped and was is not None and was.version not in skipped:
            return was
    raise NotFoundError(f"no version was champion before version {current.version}")


def _champion(deployments: Sequence[Deployment]) -> Deployment | None:
    return next((item for item in deployments if item.role == "champion"), None)


def _refreshed(item: Deployment, new: Deployment) -> Deployment:
    """Return ``item`` with the settings of ``new``; its role and age stay."""
    return replace(item, serve=new.serve or item.serve)
