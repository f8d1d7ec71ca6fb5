"""What Serve runs, as a verb reports it, and whether the routes answer that have just been flipped.

Sends nothing, and knows nothing of the desired state.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx

from raymlops.errors import DeployError
from raymlops.serving.control.details import routes, statuses
from raymlops.serving.names import route_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.serving.control.plan import Plan
    from raymlops.state.store import Deployment

POLL_S = 0.03
"""Between two probes."""
ROUTE_WAIT_S = 15.0
"""How long a flipped route may take to reach the proxies."""
PROBE_TIMEOUTS_S = (0.3, 0.5, 1.0, 2.0, 5.0)
"""Of the probes of a route: the first may still reach a version that hangs."""


@dataclass(frozen=True)
class Applied:
    """What Serve runs after a change, read back from it."""

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


def applied_of(plan: Plan) -> Applied:
    """Return what Serve runs by a plan's reading."""
    listens = plan.listens
    return Applied(statuses(plan.details), routes(plan.details), listens.host, listens.port, plan.notes, listens.reach)


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
            time.sleep(POLL_S)
