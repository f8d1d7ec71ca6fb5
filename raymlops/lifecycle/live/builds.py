"""What a config for Serve would begin again, and what it takes back, for which it does not wait. Pure.

Serve (2.60) imports and builds an application in a task, and each config that has an application whose task runs
cancels it and starts another, also where the application is the same. A config has every application. So a change of
one model would keep others down, and changes that are closer together than a build takes would let none be finished.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from raymlops.serving.control.details import being_built
from raymlops.serving.control.ownership import model_of
from raymlops.serving.control.render import settings_of
from raymlops.serving.names import app_name
from raymlops.state.conditions import Condition

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from raymlops.serving.control.plan import Plan

BUILD_S = 30.0
"""Longest time for which the build of an application holds other changes up, from when it was first seen."""
_BUILT = "build of "
_CODE = ("import_path", "args", "runtime_env")
"""By which Serve tells whether it builds an application again."""


def builds(plan: Plan, before: Mapping[str, Condition], *, now: datetime) -> dict[str, Condition]:
    """Return since when each application is being built that a config would build again, as conditions."""
    kept = {config["name"] for config in plan.division.kept}
    found = kept | {name for name, live in plan.ours.items() if _same_code(live, plan.wanted.get(name))}
    keys = {name: f"{_BUILT}{name}" for name in sorted(found) if being_built(plan.details, name)}
    return {key: before.get(key) or Condition(key, f"Serve builds {name}", now) for name, key in keys.items()}


def without_builds(conditions: Mapping[str, Condition]) -> dict[str, Condition]:
    """Return the conditions that are of models."""
    return {name: condition for name, condition in conditions.items() if not name.startswith(_BUILT)}


def held_by(plan: Plan, found: Mapping[str, Condition], *, now: datetime) -> list[str]:
    """Return the applications whose builds hold changes up; one that takes long holds nothing any more."""
    longest = {
        app_name(item.name, item.version): min(BUILD_S, settings_of(item).ready_timeout_s)
        for item in plan.desired.deployments
    }
    since = {key.removeprefix(_BUILT): condition.since for key, condition in found.items()}
    return [name for name, at in since.items() if now - at < timedelta(seconds=longest.get(name, BUILD_S))]


def withdraws(plan: Plan, applications: Mapping[str, dict[str, Any]]) -> bool:
    """Return whether a config takes something back: a model, a route, a share of the traffic, a key, or in a hurry.

    So does one that brings a champion back. A version on standby that ends takes nothing from anybody.
    """
    coming = {app_name(one.name, one.version) for one in plan.desired.coming}
    champions = {app_name(item.name, item.version) for item in plan.desired.deployments if item.role == "champion"}
    if any(one.hurry for one in plan.desired.coming) or (champions & applications.keys()) - coming - plan.ours.keys():
        return True
    desired = {item.name for item in plan.desired.deployments}
    for name, live in plan.ours.items():
        model, config = model_of(live), applications.get(name)
        if config is None:
            if model is not None and model not in desired:
                return True
        elif live.get("route_prefix") not in {None, config["route_prefix"]} or _takes_back(live, config):
            return True
    return False


def _takes_back(live: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Return whether fewer callers may send requests to an application, or another version gets fewer of them."""
    was, now = _user_config(live), _user_config(config)
    old, new = was.get("access") or {}, now.get("access") or {}
    if any(key not in new.get("keys", ()) for key in old.get("keys", ())):
        return True
    if any(old.get(key) != new.get(key) for key in ("required", "hosts")):
        return True
    left = dict(_shares(now))
    return any(left.get(version, 0.0) < weight for version, weight in _shares(was))


def _shares(user_config: Mapping[str, Any]) -> Iterator[tuple[tuple[str, int], float]]:
    traffic = user_config.get("traffic") or {}
    for kind in ("canaries", "shadows"):
        for share in traffic.get(kind, ()):
            yield (kind, share["version"]), share["weight"]


def _user_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    (options,) = config["deployments"]
    found: Mapping[str, Any] = options.get("user_config") or {}
    return found


def _same_code(live: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> bool:
    return wanted is not None and all((live.get(key) or {}) == (wanted.get(key) or {}) for key in _CODE)
