"""Whether a route that has just been flipped answers with its new version.

Asks the proxy, and knows nothing of the desired state.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

import httpx

from raymlops.errors import DeployError
from raymlops.serving.names import route_of

if TYPE_CHECKING:
    from raymlops.state.store import Deployment

POLL_S = 0.03
"""Between two probes."""
ROUTE_WAIT_S = 15.0
"""How long a flipped route may take to reach the proxies."""
PROBE_TIMEOUTS_S = (0.3, 0.5, 1.0, 2.0, 5.0)
"""Of the probes of a route: the first may still reach a version that hangs."""


def await_answer(base_url: str, champion: Deployment) -> None:
    """Wait until a champion's route answers with its version: a flip takes a moment to reach the proxies.

    Raises:
        DeployError: it does not in ``ROUTE_WAIT_S``.
    """
    url, version, last = base_url + route_of(champion.name), str(champion.version), "nothing"
    deadline = time.monotonic() + ROUTE_WAIT_S
    for timeout_s in itertools.chain(PROBE_TIMEOUTS_S, itertools.repeat(PROBE_TIMEOUTS_S[-1])):
        try:
            # A new connection each time: the previous one may be to a version that hangs. No key is sent over it, and a
            # certificate has the names that callers know, not this machine's.
            with httpx.Client(timeout=timeout_s, trust_env=False, verify=False) as client:  # noqa: S501
                response = client.get(f"{url}/healthz")  # which needs no key
            if response.headers.get("x-model-version") == version:
                return
            last = f"status {response.status_code} of version {response.headers.get('x-model-version', 'none')}"
        except httpx.HTTPError as error:
            last = type(error).__name__
        if time.monotonic() > deadline:
            raise DeployError(
                f"version {version} of {champion.name} runs, but {url} does not answer with it: got {last}",
                hint="Is the proxy's address reachable from here? Something else may listen on that port.",
            )
        time.sleep(POLL_S)
