"""Serve's details, as its REST API returns them: configs, routes, statuses, replicas, messages.

Owns how they are read. Pure; knows nothing of the desired state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raymlops.serving.names import DEPLOYMENT

Details = Mapping[str, Any]


def configs(details: Details) -> dict[str, dict[str, Any]]:
    """Return the declared config of each live application; one that ``serve.run`` started has none."""
    return {
        name: application["deployed_app_config"]
        for name, application in details["applications"].items()
        if application.get("deployed_app_config") and application.get("status") != "DELETING"
    }


def differing(wanted: Mapping[str, Any], live: Mapping[str, Any]) -> frozenset[str]:
    """Return the applications that are wanted and not live, the other way round, or live with another config."""
    other = {name for name in wanted.keys() & live.keys() if not covers(live[name], wanted[name])}
    return frozenset(other | (wanted.keys() ^ live.keys()))


def covers(live: Any, wanted: Any) -> bool:
    """Return whether ``live`` contains everything in ``wanted``.

    Serve adds its defaults to a config, and ``initial_replicas`` stays in the config that started a version.
    """
    if isinstance(wanted, Mapping):
        return isinstance(live, Mapping) and all(covers(live.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return (
            isinstance(live, list)
            and len(live) == len(wanted)
            and all(covers(one, other) for one, other in zip(live, wanted, strict=True))
        )
    return bool(live == wanted)


def settled(live: Any, wanted: Mapping[str, Any] | None) -> bool:
    """Return whether an application has the wanted config, except for what others may change meanwhile.

    That is its route, its scaling bounds, and its settings of keys and traffic.
    """
    if live is None or wanted is None:
        return live is not None
    (options,) = wanted["deployments"]
    settings = {key: value for key, value in options["user_config"].items() if key not in {"access", "traffic"}}
    kept = {key: value for key, value in options.items() if key not in {"autoscaling_config", "user_config"}}
    return covers(live, {"args": wanted["args"], "deployments": [{**kept, "user_config": settings}]})


def routes(details: Details) -> dict[str, str]:
    """Return the application at each route."""
    return {
        application["route_prefix"]: name
        for name, application in details["applications"].items()
        if application.get("route_prefix")
    }


def status_of(details: Details, name: str) -> str:
    """Return an application's status, ``NOT_STARTED`` if Serve does not know it."""
    application = details["applications"].get(name)
    return "NOT_STARTED" if application is None else str(application["status"])


def running_replicas(details: Details, name: str) -> int:
    """Return the number of running replicas of one of our applications."""
    return sum(replica["state"] == "RUNNING" for replica in _replicas(details, name))


def being_built(details: Details, name: str) -> bool:
    """Return whether Serve imports and builds an application: it has no deployments yet."""
    application = details["applications"].get(name, {})
    return application.get("status") == "DEPLOYING" and not application.get("deployments")


def unscheduled(details: Details, name: str) -> bool:
    """Return whether a replica of one of our applications is on no node yet, as where there is no room for it."""
    return any(one["state"] == "STARTING" and not one.get("node_id") for one in _replicas(details, name))


def without_place(details: Details, name: str) -> bool:
    """Return whether all replicas of one of our applications are on no node yet."""
    found = _replicas(details, name)
    return bool(found) and all(one["state"] == "STARTING" and not one.get("node_id") for one in found)


def message_of(details: Details, name: str) -> str:
    """Return the application's own message and its deployment's, shortened to fit a screen."""
    application = details["applications"].get(name, {})
    parts = [application.get("message", "")]
    parts += [deployment.get("message", "") for deployment in application.get("deployments", {}).values()]
    unique = [part for index, part in enumerate(parts) if part and part not in parts[:index]]
    return last_lines("\n".join(unique), 24)


def last_lines(text: str, lines: int) -> str:
    """Return the end of a long message, which in a traceback is the error."""
    kept = [line for line in text.rstrip().splitlines() if line.strip()]
    return "\n".join(["...", *kept[-lines:]] if len(kept) > lines else kept)


def _replicas(details: Details, name: str) -> list[Mapping[str, Any]]:
    application = details["applications"].get(name, {})
    found: list[Mapping[str, Any]] = application.get("deployments", {}).get(DEPLOYMENT, {}).get("replicas", [])
    return found
