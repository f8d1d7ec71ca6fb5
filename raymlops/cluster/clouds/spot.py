"""A spot machine that the cloud takes away: its notice is waited for, and then its Ray node is drained.

A drained node gets no new work; training moves off it with its newest state, Serve starts replicas elsewhere. Owns how
each cloud's metadata service is asked and what its answer means. Knows no training.
"""

from __future__ import annotations

import datetime as dt
import email.utils
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import httpx

from raymlops.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Cloud = Literal["aws", "gcp", "azure"]

EVERY_S = 5.0
"""How often to ask, as AWS advises; GCP and Azure leave 30 s between notice and end."""
_TIMEOUT_S = 2.0
_LINK_LOCAL = "http://169.254.169.254"
_SHORT_S = 30


@dataclass(frozen=True)
class Notice:
    """The machine is taken away in so many seconds, and who says so."""

    within_s: int
    by: str


def notice(cloud: Cloud, *, now: dt.datetime, base: str = _LINK_LOCAL) -> Notice | None:
    """Ask the metadata service of this machine whether it is to be taken away.

    Raises:
        ClusterError: nobody answers as that cloud's metadata service does.
    """
    try:
        with httpx.Client(base_url=base, timeout=_TIMEOUT_S, trust_env=False) as client:
            return {"aws": _aws, "gcp": _gcp, "azure": _azure}[cloud](client, now)
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise ClusterError(
            f"the metadata service at {base} does not answer as {cloud}'s does: {error or type(error).__name__}",
            hint="Run it on a machine of that cloud, in the machine's own network: docker run --net=host.",
        ) from error


def _aws(client: httpx.Client, now: dt.datetime) -> Notice | None:
    ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = client.put("/latest/api/token", headers=ttl).raise_for_status().text
    answer = client.get("/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token})
    if answer.status_code == httpx.codes.NOT_FOUND:
        return None
    action = answer.raise_for_status().json()
    at = dt.datetime.fromisoformat(action["time"])
    return Notice(_seconds(at, now), f"AWS: {action['action']} at {action['time']}")


def _gcp(client: httpx.Client, _now: dt.datetime) -> Notice | None:
    headers = {"Metadata-Flavor": "Google"}
    answer = client.get("/computeMetadata/v1/instance/preempted", headers=headers).raise_for_status().text.strip()
    if answer not in {"TRUE", "FALSE"}:
        raise ValueError(answer[:100])
    return Notice(_SHORT_S, "Google Cloud: preempted") if answer == "TRUE" else None


def _azure(client: httpx.Client, now: dt.datetime) -> Notice | None:
    """Look for this machine's own name: all machines of an availability set or a scale set hear of each event."""
    asks = {"api-version": "2020-07-01"}
    answer = client.get("/metadata/scheduledevents", params=asks, headers={"Metadata": "true"})
    events = [event for event in answer.raise_for_status().json()["Events"] if event["EventType"] == "Preempt"]
    if not events:
        return None
    asks = {"api-version": "2021-02-01", "format": "text"}
    answer = client.get("/metadata/instance/compute/name", params=asks, headers={"Metadata": "true"})
    name = answer.raise_for_status().text.strip().lower()  # SET_3 in a scale set, as in the event
    ours = next((event for event in events if name in [other.lower() for other in event["Resources"]]), None)
    if ours is None:
        return None
    # Empty once it has begun.
    at = email.utils.parsedate_to_datetime(ours["NotBefore"]) if ours.get("NotBefore") else None
    return Notice(_SHORT_S if at is None else _seconds(at, now), "Azure: Preempt")


def _seconds(at: dt.datetime, now: dt.datetime) -> int:
    aware = at if at.tzinfo else at.replace(tzinfo=dt.UTC)
    return max(0, int((aware - now).total_seconds()))


def wait(
    ask: Callable[[], Notice | None], *, sleep: Callable[[float], object], note: Callable[[str], object]
) -> Notice:
    """Ask until there is a notice. That nobody answers is told once: Azure's service takes two minutes to begin."""
    told = False
    while True:
        try:
            found = ask()
        except ClusterError as error:
            if not told:
                note(error.message)
            found, told = None, True
        else:
            told = False
        if found is not None:
            return found
        sleep(EVERY_S)


@dataclass(frozen=True)
class Node:
    """A node that runs, and how many others do."""

    node_id: str
    others: int


def find(node_id: str | None = None) -> Node:
    """Return the node of this machine, or the one with the id.

    Raises:
        ClusterError: Ray does not answer, no node runs here, several do, or the id is of none.
    """
    from ray._private.services import get_node_ip_address

    try:
        rows = _gcs().get_all_node_info(timeout=10).items()
    except (Exception, SystemExit) as error:
        message = f"Ray does not answer: {str(error).partition(chr(10))[0]}"
        raise ClusterError(message, hint="Run it beside Ray, as `raymlops env raymlops drain`.") from error
    alive = {key.hex(): str(row.node_manager_address) for key, row in rows if row.state == row.ALIVE}
    return Node(node_of(alive, here=get_node_ip_address(), node_id=node_id), len(alive) - 1)


def drain(node: Node, *, reason: str, within_s: int) -> None:
    """Drain a node.

    Raises:
        ClusterError: Ray refuses.
    """
    from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

    deadline_ms = int((time.time() + within_s) * 1000)
    accepted, why = _gcs().drain_node(node.node_id, DRAIN_NODE_REASON_PREEMPTION, reason, deadline_ms)
    if not accepted:
        raise ClusterError(f"Ray does not drain the node {node.node_id}: {why}", hint="ray list nodes")


def _gcs() -> Any:
    from ray._private.services import canonicalize_bootstrap_address_or_die
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    return GcsClient(address=canonicalize_bootstrap_address_or_die(None))


def node_of(alive: Mapping[str, str], *, here: str, node_id: str | None) -> str:
    """Return the id of the node that is meant, of those that run and their addresses.

    Ray takes any id, and answers that it is drained.

    Raises:
        ClusterError: it is not one of them; or without an id, none or several run here.
    """
    if node_id is not None:
        if node_id in alive:
            return node_id
        got = f"no node {node_id!r} runs; these do: {', '.join(alive)}"
        raise ClusterError(got, hint="Name one of them in full, or none for that of this machine.")
    known = [key for key, address in alive.items() if address == here]
    if len(known) != 1:
        got = f"{len(known)} nodes run at {here}: {', '.join(known)}" if known else f"no node of Ray runs at {here}"
        raise ClusterError(got, hint="Name one: --node ID, as `ray list nodes` prints it.")
    return known[0]
