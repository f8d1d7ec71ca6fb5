"""How a model's policy of retraining differs from an earlier one, in words, for ``audit``. Pure."""

from __future__ import annotations

from typing import Any

from raymlops.config.shape import leaves
from raymlops.config.yaml import dotted
from raymlops.errors import StorageError
from raymlops.lifecycle.live.lineup import champion_of, retrained
from raymlops.state.store import Deployment


def policy_changes(before: Any, after: Any) -> str:
    """Return what differs in the champion's ``retrain`` section, by the sides of an audit event; empty if nothing.

    It is empty too where they are no deployments, or such as this release cannot read.
    """
    try:
        were, are = _fields(before), _fields(after)
    except StorageError:  # of another release
        return ""
    changed = (name for name in were if name in are and were[name] != are[name])
    return ", ".join(f"retrain.{name}: {_shown(were[name])} -> {_shown(are[name])}" for name in changed)


def _fields(side: Any) -> dict[str, Any]:
    champion = champion_of([Deployment.from_dict(item) for item in side]) if isinstance(side, list) else None
    if champion is None:
        return {}
    return {dotted(path): value for path, value in leaves(retrained(champion).model_dump(mode="json"))}


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
