"""Bringing Serve to what should be live, and reading back that it got there.

Owns the order of steps and the waiting. Knows nothing of where the desired state is kept or why it changed.

A version that is to hold the route is first brought up beside the one that holds it, and then the route is flipped,
which Serve does in place within half a second. So a version that does not come up never takes the route. Nothing here
asks, or waits for, a version that is to lose the route: it may be the one that hangs.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import httpx

from raymlops.errors import DeployError
from raymlops.serving.proxy import check_port, free_port
from raymlops.serving.readback import (
    Details,
    configs,
    covers,
    message_of,
    routes,
    running_replicas,
    same,
    status_of,
    statuses,
)
from raymlops.serving.render import INDEX_APP, app_name, is_ours, render, route_of

if TYPE_CHECKING:
    from raymlops.state.store import Deployment, Desired

FIRST_POLL_S = 0.03
POLL_S = 0.25
"""How long to wait before Serve is asked again: little at first, since most changes are in force at once."""
SCALE_WAIT_S = 20.0
"""How long a flip waits for the new champion to have as many replicas as the old one; then it goes ahead."""
ROUTE_WAIT_S = 15.0
"""How long a flipped route may take to reach the proxies."""
GONE_WAIT_S = 20.0
"""How long to wait for what was removed to give its resources back; a hung one is Serve's to finish."""
PROBE_TIMEOUTS_S = (0.3, 0.5, 1.0, 2.0, 5.0)
"""Of the questions to a route: the first may still reach a version that hangs."""

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


class Heir(NamedTuple):
    """A version that is to take a route: how many replicas it must have, and should have; whether it has any."""

    least: int
    replicas: int
    up: bool
    config: dict[str, Any]
    """Its application with the route and the replicas that it should have."""


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
    desired: Desired,
    *,
    api: Api,
    wait_s: float,
    concerned: Collection[tuple[str, int]] | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    grpc_port: int | None = None,
    probe: bool = True,
    hurry: bool = False,
    on_status: OnStatus | None = None,
) -> Applied:
    """Make what is desired live and return what was read back.

    Sends nothing where Serve already has this config. ``concerned`` are the versions, as (name, version), that must be
    seen to run, by default every champion; the others are sent and not waited for, so that a model that is broken
    keeps no other from changing. ``host`` and the ports count only where Serve does not run yet. ``probe`` also asks
    each champion concerned that takes a route over HTTP whether it answers, where Serve runs on this machine. With
    ``hurry`` a version that is up takes the route at once, and has as many replicas as the old one only later. To undo
    a failed apply, apply what was desired before: versions that are not in it are deleted.

    Raises:
        DeployError: a version did not come up in ``wait_s``, with its own message. The routes are as they were before.
        ClusterError: the dashboard does not answer, or refuses us.
        PortTakenError: Serve does not run yet and its port is another process's.
        UsageError: what is desired cannot be rendered.
    """
    local = urlsplit(api.dashboard_url).hostname in {"127.0.0.1", "::1", "localhost"}
    details = api.get()
    if options := details.get("http_options"):
        host, port = options["host"], options["port"]
    elif desired.deployments and local:
        port = port or free_port(host)
        check_port(host, port)
    live = configs(details)
    foreign = [config for config in live.values() if not is_ours(config)]
    target = render(desired, host=host, port=port, foreign=foreign, grpc_port=grpc_port)
    wanted = {config["name"]: config for config in target["applications"] if is_ours(config)}
    ours = {name: config for name, config in live.items() if is_ours(config)}
    deadline = time.monotonic() + wait_s
    champions = [item for item in desired.deployments if item.role == "champion"]
    if concerned is None:
        concerned = {(item.name, item.version) for item in champions}
    awaited = {app_name(*version) for version in concerned} & wanted.keys()
    failed = {name for name in awaited if status_of(details, name) == "DEPLOY_FAILED"}
    changed = bool(failed) or not same(wanted, ours)
    scaled: dict[str, dict[str, Any]] = {}
    if changed:
        details = _drop(api, details, failed, target)
        staged, heirs = _stage(wanted, details)
        scaled = {name: heir.config for name, heir in heirs.items() if hurry and name in awaited and heir.up}
        if ready := {name: heir for name, heir in heirs.items() if name in awaited and name not in scaled}:
            api.put({**target, "applications": [*staged.values(), *foreign]})
            _await_heirs(api, ready, deadline=deadline, on_status=on_status)
        wanted = _held_back(wanted, staged, heirs.keys() - awaited)
        api.put({**target, "applications": [*(wanted | scaled).values(), *foreign]})
        awaited |= {INDEX_APP} & (wanted.keys() - ours.keys())

    def ready_in(details: Details, name: str) -> bool:
        if name in scaled:  # it answers; that more of its replicas are on their way keeps nobody waiting
            return running_replicas(details, name) > 0 and covers(configs(details).get(name), scaled[name])
        return status_of(details, name) == "RUNNING" and covers(configs(details).get(name), wanted[name])

    details = _await(api, awaited, ready_in, deadline=deadline, on_status=on_status)
    details = _await_gone(api, details, ours.keys() - wanted.keys(), deadline=deadline)
    applied = Applied(changed, statuses(details), routes(details), host, port)
    if probe and local:
        held = {config.get("route_prefix"): name for name, config in ours.items()}
        asked = [item for item in champions if app_name(item.name, item.version) in awaited]
        if changed:  # who holds its route already answers, and only its settings are others
            asked = [item for item in asked if held.get(route_of(item.name)) != app_name(item.name, item.version)]
        _await_answers(applied, asked, deadline=min(deadline, time.monotonic() + ROUTE_WAIT_S))
    if scaled:
        api.put({**target, "applications": [*wanted.values(), *foreign]})
    return applied


def _drop(api: Api, details: dict[str, Any], failed: set[str], target: Application) -> dict[str, Any]:
    """Delete what an earlier attempt left behind failed, so that sending it again is a new attempt."""
    if not failed:
        return details
    rest = [config for name, config in configs(details).items() if name not in failed]
    api.put({**target, "applications": rest})
    return _await_gone(api, details, failed, deadline=time.monotonic() + SCALE_WAIT_S)


def _stage(
    wanted: Mapping[str, dict[str, Any]], details: Application
) -> tuple[dict[str, dict[str, Any]], dict[str, Heir]]:
    """Return the step before the flip, and the applications that must be up before it with their replicas.

    In that step all that is live stays as it is, no route moves, and new versions come up beside it. There are no heirs
    where each version that is to take a route over is up already. Each is first scaled to what the holder of its route
    runs, since a flip sends it all the traffic at once.
    """
    live = {name: config for name, config in configs(details).items() if is_ours(config)}
    holders = {config["route_prefix"]: name for name, config in live.items() if config.get("route_prefix")}
    staged = dict(live)
    heirs: dict[str, Heir] = {}
    for name, config in wanted.items():
        holder = holders.get(config["route_prefix"], name)
        if holder == name:
            staged.setdefault(name, config)
            continue
        (options,) = config["deployments"]
        bounds = options["autoscaling_config"]
        least = max(1, bounds["min_replicas"])  # one that went to zero replicas answers only once it has one again
        replicas = min(max(least, running_replicas(details, holder)), bounds["max_replicas"])
        running, status = running_replicas(details, name), status_of(details, name)
        if running < replicas or status != "RUNNING":
            scaled = {**options, "autoscaling_config": {**bounds, "min_replicas": replicas}}
            up = running > 0 and status not in {"DEPLOY_FAILED", "UNHEALTHY"}
            heirs[name] = Heir(least, replicas, up, {**config, "deployments": [scaled]})
            staged[name] = {**config, "route_prefix": None, "deployments": [scaled]}
    return staged, heirs


def _held_back(
    wanted: dict[str, dict[str, Any]], staged: Mapping[str, dict[str, Any]], heirs: Collection[str]
) -> dict[str, dict[str, Any]]:
    """Return the last step, in which models that are not concerned flip no route to a version that is not up.

    An earlier change that was killed on its way may have left such a model. It goes on as it is; its new version comes
    up beside it, and the next apply that finds it up completes the change.
    """
    held = {wanted[name]["args"]["name"] for name in heirs}
    kept = {name: config for name, config in staged.items() if config["args"].get("name") in held}
    return {name: config for name, config in wanted.items() if config["args"].get("name") not in held} | kept


def _await(
    api: Api,
    awaited: Collection[str],
    ready: Callable[[Details, str], bool],
    *,
    deadline: float,
    on_status: OnStatus | None,
) -> dict[str, Any]:
    """Wait until the awaited applications are ready; return Serve's details."""
    shown: dict[str, str] = {}
    pauses = _pauses()
    while True:
        details = api.get()
        statuses = {name: status_of(details, name) for name in sorted(awaited)}
        if on_status is not None and statuses != shown:
            on_status(statuses)
            shown = statuses
        for name, status in statuses.items():
            if status in {"DEPLOY_FAILED", "UNHEALTHY"}:
                raise DeployError(f"{name} is {status}:\n{message_of(details, name)}", hint=_hint(details, name))
        if all(ready(details, name) for name in awaited):
            return details
        if time.monotonic() > deadline:
            late = [f"{name} is {status}" for name, status in statuses.items() if status != "RUNNING"]
            text = "; ".join(late) or "Serve does not report the config that it was sent"
            detail = "\n".join(message_of(details, name) for name in statuses if message_of(details, name))
            raise DeployError(
                f"not ready in time: {text}\n{detail}".rstrip(),
                hint="Raise serve.ready_timeout_s, or see `raymlops doctor` for whether the cluster has room.",
            )
        time.sleep(next(pauses))


def _await_heirs(api: Api, heirs: Mapping[str, Heir], *, deadline: float, on_status: OnStatus | None) -> None:
    """Wait for each heir's least replicas, then for a while for as many as the traffic needs."""
    _await(
        api,
        heirs,
        lambda details, name: running_replicas(details, name) >= heirs[name].least,
        deadline=deadline,
        on_status=on_status,
    )
    deadline = min(deadline, time.monotonic() + SCALE_WAIT_S)
    while any(running_replicas(api.get(), name) < heir.replicas for name, heir in heirs.items()):
        if time.monotonic() > deadline:
            return
        time.sleep(POLL_S)


def _await_gone(api: Api, details: dict[str, Any], names: set[str], *, deadline: float) -> dict[str, Any]:
    """Wait until removed applications have given back their resources; a late one is Serve's to finish."""
    deadline = min(deadline, time.monotonic() + GONE_WAIT_S)
    while names & details["applications"].keys() and time.monotonic() < deadline:
        time.sleep(POLL_S)
        details = api.get()
    return details


def _await_answers(applied: Applied, champions: Sequence[Deployment], *, deadline: float) -> None:
    """Wait until each champion's route answers with its version: a flip takes a moment to reach the proxies."""
    last = "nothing"
    for champion in champions:
        url, version = applied.base_url + route_of(champion.name), str(champion.version)
        for timeout_s in itertools.chain(PROBE_TIMEOUTS_S, itertools.repeat(PROBE_TIMEOUTS_S[-1])):
            try:
                # A connection of its own each time: the one before may have ended at a version that hangs.
                with httpx.Client(timeout=timeout_s, trust_env=False) as client:
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
            time.sleep(FIRST_POLL_S)


def _pauses() -> Iterator[float]:
    pause_s = FIRST_POLL_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, POLL_S)


def _hint(details: Application, name: str) -> str:
    live = [f"{route} by {app}" for route, app in routes(details).items() if app != name and route != "/"]
    return f"Still live: {', '.join(live)}." if live else "Nothing else was changed."
