"""Polling of Serve: until applications run, have their replicas, are gone, answer at their routes.

Owns the intervals and timeouts. Sends nothing, and knows nothing of the desired state.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import httpx

from raymlops.errors import DeployError
from raymlops.serving.control.details import Details, message_of, routes, running_replicas, status_of
from raymlops.serving.names import route_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from raymlops.state.store import Deployment

FIRST_POLL_S = 0.03
POLL_S = 0.25
"""Polling interval: short at first, since most changes take effect at once."""
SCALE_WAIT_S = 20.0
"""How long a flip waits for the new champion to have as many replicas as the old one; then it flips anyway."""
ROUTE_WAIT_S = 15.0
"""How long a flipped route may take to reach the proxies."""
GONE_WAIT_S = 20.0
"""How long to wait until removed applications release their resources; Serve ends a hung one later."""
PROBE_TIMEOUTS_S = (0.3, 0.5, 1.0, 2.0, 5.0)
"""Of the probes of a route: the first may still reach a version that hangs."""

Application = Mapping[str, Any]


class Api(Protocol):
    """The part of ``ServeApi`` that ``apply`` uses."""

    @property
    def dashboard_url(self) -> str:
        """Return the URL of the Ray dashboard."""

    def get(self) -> dict[str, Any]:
        """Return Serve's details."""

    def put(self, config: dict[str, Any]) -> None:
        """Send a config."""


@dataclass(frozen=True)
class Applied:
    """The live state after an apply, read back from Serve."""

    changed: bool
    statuses: dict[str, str]
    """Application to ``RUNNING``, ``UNHEALTHY`` ..., the foreign ones included."""
    routes: dict[str, str] = field(default_factory=dict)
    """Route to application."""
    host: str = "127.0.0.1"
    port: int = 8000
    notes: tuple[str, ...] = ()
    """Notes on this Serve: other states on it, models that others can reach without a key."""
    reach: str | None = None
    """The host that decides whether keys are required by default."""

    @property
    def base_url(self) -> str:
        """Return the URL of the proxy."""
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::"} else self.host  # noqa: S104 - an address to reach, not to bind
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def await_ready(
    api: Api,
    awaited: Collection[str],
    ready: Callable[[Details, str], bool],
    *,
    deadline: float,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Wait until the awaited applications are ready; return Serve's details. ``check`` is called at each poll."""
    pauses = _pauses()
    while True:
        check()
        details = api.get()
        statuses = {name: status_of(details, name) for name in sorted(awaited)}
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


def await_replicas(
    api: Api,
    replicas: Mapping[str, tuple[int, int]],
    *,
    deadline: float,
    ready: Callable[[Details, str], bool] | None = None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Wait for each application's minimum of replicas, then for a while for its wanted number.

    ``replicas`` has both by name; ``ready`` is another condition in place of the minimum.
    """

    def has_minimum(details: Details, name: str) -> bool:
        return running_replicas(details, name) >= replicas[name][0]

    details = await_ready(api, replicas, ready or has_minimum, deadline=deadline, check=check)
    deadline = min(deadline, time.monotonic() + SCALE_WAIT_S)
    while any(running_replicas(details, name) < wanted for name, (_, wanted) in replicas.items()):
        if time.monotonic() > deadline:
            return
        check()
        time.sleep(POLL_S)
        details = api.get()


def await_gone(api: Api, details: dict[str, Any], names: set[str], *, deadline: float) -> dict[str, Any]:
    """Wait until removed applications release their resources; Serve ends a late one later."""
    deadline = min(deadline, time.monotonic() + GONE_WAIT_S)
    while names & details["applications"].keys() and time.monotonic() < deadline:
        time.sleep(POLL_S)
        details = api.get()
    return details


def await_answers(applied: Applied, champions: Sequence[Deployment], *, deadline: float) -> None:
    """Wait until each champion's route answers with its version: a flip takes a moment to reach the proxies."""
    last = "nothing"
    for champion in champions:
        url, version = applied.base_url + route_of(champion.name), str(champion.version)
        for timeout_s in itertools.chain(PROBE_TIMEOUTS_S, itertools.repeat(PROBE_TIMEOUTS_S[-1])):
            try:
                # A new connection each time: the previous one may be to a version that hangs.
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
