"""Bringing Serve to the desired deployments, and reading back that it got there.

Owns the order of steps and the waiting. Knows nothing of where the desired state is kept or why it changed.

A version that is to hold the route is first brought up beside the one that holds it, and then the route is flipped,
which Serve does in place within half a second. So a version that does not come up never takes the route.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import httpx

from raymlops.errors import DeployError
from raymlops.serving.proxy import check_port, free_port
from raymlops.serving.readback import configs, covers, message_of, routes, running_replicas, same, status_of, statuses
from raymlops.serving.render import app_name, is_ours, render, route_of

if TYPE_CHECKING:
    from raymlops.state.store import Deployment

POLL_S = 0.25
SCALE_WAIT_S = 20.0
"""How long a flip waits for the new champion to have as many replicas as the old one; then it goes ahead."""
ROUTE_WAIT_S = 15.0
"""How long a flipped route may take to reach the proxies."""

Application = Mapping[str, Any]
OnStatus = Callable[[Mapping[str, str]], None]


class Api(Protocol):
    """What ``apply`` asks of a ``ServeApi``."""

    @property
    def dashboard_url(self) -> str:
        """Return where the Ray dashboard is."""

    def get(self) -> dict[str, Any]:
        """Return Serve's details."""

    def put(self, config: dict[str, Any]) -> None:
        """Send a config."""


@dataclass(frozen=True)
class Applied:
    """What is live after an apply, read back from Serve."""

    changed: bool
    statuses: dict[str, str]
    """Application to ``RUNNING``, ``UNHEALTHY`` ..., the foreign ones included."""
    routes: dict[str, str] = field(default_factory=dict)
    """Route to application."""
    host: str = "127.0.0.1"
    port: int = 8000

    @property
    def base_url(self) -> str:
        """Return the URL of the proxy."""
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::"} else self.host  # noqa: S104 - an address to reach, not to bind
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def apply(
    deployments: Sequence[Deployment],
    *,
    api: Api,
    wait_s: float,
    host: str = "127.0.0.1",
    port: int = 8000,
    probe: bool = True,
    on_status: OnStatus | None = None,
) -> Applied:
    """Make the desired deployments live and return what was read back.

    Sends nothing where Serve already has this config. ``host`` and ``port`` count only where Serve does not run
    yet. ``probe`` also asks each changed champion over HTTP whether it answers, where Serve runs on this machine.
    To undo a failed apply, apply the previous deployments: versions that are not among them are deleted.

    Raises:
        DeployError: a version did not come up in ``wait_s``, with its own message. The routes are as they were before.
        ClusterError: the dashboard does not answer, or refuses us.
        PortTakenError: Serve does not run yet and its port is another process's.
        UsageError: the deployments cannot be rendered.
    """
    local = urlsplit(api.dashboard_url).hostname in {"127.0.0.1", "::1", "localhost"}
    details = api.get()
    if options := details.get("http_options"):
        host, port = options["host"], options["port"]
    elif deployments and local:
        port = port or free_port(host)
        check_port(host, port)
    live = configs(details)
    foreign = [config for config in live.values() if not is_ours(config)]
    target = render(deployments, host=host, port=port, foreign=foreign)
    wanted = {config["name"]: config for config in target["applications"] if is_ours(config)}
    ours = {name: config for name, config in live.items() if is_ours(config)}
    deadline = time.monotonic() + wait_s
    changed = not same(wanted, ours)
    awaited = {name for name, config in wanted.items() if _awaited(config, ours.get(name), changed=changed)}
    if changed:
        details = _drop_failed(api, details, awaited, target)
        staged, heirs = _stage(wanted, details)
        if heirs:
            api.put({**target, "applications": [*staged.values(), *foreign]})
            _await_running(api, staged, set(heirs), deadline=deadline, on_status=on_status)
            _await_replicas(api, heirs, deadline=min(deadline, time.monotonic() + SCALE_WAIT_S))
        api.put(target)
    details = _await_running(api, wanted, awaited, deadline=deadline, on_status=on_status)
    details = _await_gone(api, details, set(ours) - set(wanted), deadline=deadline)
    applied = Applied(changed, statuses(details), routes(details), host, port)
    if probe and local:
        champions = [item for item in deployments if item.role == "champion"]
        champions = [item for item in champions if app_name(item.name, item.version) in awaited]
        _await_answers(applied, champions, deadline=min(deadline, time.monotonic() + ROUTE_WAIT_S))
    return applied


def _drop_failed(api: Api, details: dict[str, Any], names: set[str], target: Application) -> dict[str, Any]:
    """Delete what an earlier attempt left behind failed, so that sending it again is a new attempt."""
    failed = {name for name in names if status_of(details, name) == "DEPLOY_FAILED"}
    if not failed:
        return details
    rest = [config for name, config in configs(details).items() if name not in failed]
    api.put({**target, "applications": rest})
    return _await_gone(api, details, failed, deadline=time.monotonic() + SCALE_WAIT_S)


def _awaited(config: Application, live: Application | None, *, changed: bool) -> bool:
    """Return whether an application must be seen to run: what a change concerns; all champions where nothing changes.

    Not so the version that only loses its route, or another model's: either may be broken, and the change its remedy.
    """
    route = config["route_prefix"]
    if not changed:
        return route is not None
    if live is None or (route is not None and live.get("route_prefix") != route):
        return True
    return not covers(live, {key: value for key, value in config.items() if key != "route_prefix"})


def _stage(
    wanted: Mapping[str, dict[str, Any]], details: Application
) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """Return the step before the flip, and the applications that must be up before it with their replicas.

    In that step all that is live stays as it is, no route moves, and new versions come up beside it. There are no heirs
    where each version that is to take a route over is up already. Each is first scaled to what the holder of its route
    runs, since a flip sends it all the traffic at once.
    """
    live = {name: config for name, config in configs(details).items() if is_ours(config)}
    holders = {config["route_prefix"]: name for name, config in live.items() if config.get("route_prefix")}
    staged = dict(live)
    heirs: dict[str, int] = {}
    for name, config in wanted.items():
        holder = holders.get(config["route_prefix"], name)
        if holder == name:
            staged.setdefault(name, config)
            continue
        (options,) = config["deployments"]
        bounds = options["autoscaling_config"]
        replicas = min(max(bounds["min_replicas"], running_replicas(details, holder)), bounds["max_replicas"])
        if running_replicas(details, name) < replicas or status_of(details, name) != "RUNNING":
            heirs[name] = replicas
            scaled = {**options, "autoscaling_config": {**bounds, "min_replicas": replicas}}
            staged[name] = {**config, "route_prefix": None, "deployments": [scaled]}
    return staged, heirs


def _await_running(
    api: Api,
    wanted: Mapping[str, Application],
    awaited: set[str],
    *,
    deadline: float,
    on_status: OnStatus | None,
) -> dict[str, Any]:
    """Wait until the awaited applications have the wanted config and run; return Serve's details."""
    shown: dict[str, str] = {}
    while True:
        details = api.get()
        statuses = {name: status_of(details, name) for name in sorted(awaited)}
        if on_status is not None and statuses != shown:
            on_status(statuses)
            shown = statuses
        for name, status in statuses.items():
            if status in {"DEPLOY_FAILED", "UNHEALTHY"}:
                raise DeployError(f"{name} is {status}:\n{message_of(details, name)}", hint=_hint(details, name))
        live = configs(details)
        if all(
            statuses.get(name, "RUNNING") == "RUNNING" and covers(live.get(name), config)
            for name, config in wanted.items()
        ):
            return details
        if time.monotonic() > deadline:
            late = [f"{name} is {status}" for name, status in statuses.items() if status != "RUNNING"]
            text = "; ".join(late) or "Serve does not report the config that it was sent"
            detail = "\n".join(message_of(details, name) for name in statuses if message_of(details, name))
            raise DeployError(
                f"not ready in time: {text}\n{detail}".rstrip(),
                hint="Raise serve.ready_timeout_s, or see `raymlops doctor` for whether the cluster has room.",
            )
        time.sleep(POLL_S)


def _await_replicas(api: Api, heirs: Mapping[str, int], *, deadline: float) -> None:
    while time.monotonic() < deadline:
        details = api.get()
        if all(running_replicas(details, name) >= replicas for name, replicas in heirs.items()):
            return
        time.sleep(POLL_S)


def _await_gone(api: Api, details: dict[str, Any], names: set[str], *, deadline: float) -> dict[str, Any]:
    """Wait until removed applications have given back their resources; a late one is Serve's to finish."""
    while names & details["applications"].keys() and time.monotonic() < deadline:
        time.sleep(POLL_S)
        details = api.get()
    return details


def _await_answers(applied: Applied, champions: Sequence[Deployment], *, deadline: float) -> None:
    """Wait until each champion's route answers with its version: a flip takes a moment to reach the proxies."""
    last = "nothing"
    with httpx.Client(timeout=5.0, trust_env=False) as client:
        for champion in champions:
            url, version = applied.base_url + route_of(champion.name), str(champion.version)
            while True:
                try:
                    response = client.get(url)
                    if response.headers.get("x-model-version") == version:
                        break
                    last = f"status {response.status_code} of version {response.headers.get('x-model-version', 'none')}"
                except httpx.HTTPError as error:
                    last = type(error).__name__
                if time.monotonic() > deadline:
                    raise DeployError(
                        f"version {version} of {champion.name} runs, but {url} does not answer with it: got {last}",
                        hint="Is the proxy's address reachable from here? Something else may listen on that port.",
                    )
                time.sleep(0.05)


def _hint(details: Application, name: str) -> str:
    live = [f"{route} by {app}" for route, app in routes(details).items() if app != name and route != "/"]
    return f"Still live: {', '.join(live)}." if live else "Nothing else was changed."
