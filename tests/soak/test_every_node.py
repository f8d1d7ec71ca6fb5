"""A proxy on every node with a replica: what answers while the head is frozen, and once another node has joined."""

from __future__ import annotations

import json
import signal
import time

import httpx
import pytest
from launched_endpoint import launched_endpoint
from machines import NEEDS_MACHINES
from serving_bundles import MIXED_ROWS

pytestmark = [pytest.mark.soak, NEEDS_MACHINES]

FROZEN_S = 6.0
JOINED_S = 120.0


def status(endpoint, address):
    url = f"{endpoint.host_at(address)}/models/mixed/predict"
    try:
        return httpx.post(url, json={"rows": MIXED_ROWS}, timeout=20).status_code
    except httpx.HTTPError as error:
        return repr(error)


def command(machine, endpoint, what):
    """Run a command on a machine; return what it printed, which may say that something is wrong."""
    dashboard = f"RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://{endpoint.address}:8265"
    return machine.start(f"{dashboard} raymlops {what} 2>/dev/null || true", {})


def proxies(machine, endpoint):
    found = json.loads(command(machine, endpoint, "status --json"))["proxies"]
    return sorted((one["node_ip"], one["kind"], one["guarded"]) for one in found)


def test_each_node_with_a_replica_answers(tmp_path, capsys):
    """At its own address: the worker also while the head is frozen, and a node that joins once it has a replica."""
    with launched_endpoint(tmp_path, everywhere=True, spare=1) as endpoint:
        head, worker, joining = endpoint.machines
        endpoint.change(auth="open")
        assert [status(endpoint, address) for address in endpoint.addresses] == [200, 200]
        expected = [(address, "haproxy", True) for address in endpoint.addresses]
        for machine in (head, worker):
            assert proxies(machine, endpoint) == expected
        assert "proxies:" not in command(head, endpoint, "doctor")

        head.start("kill -STOP -1", {})
        try:
            began, during = time.monotonic(), []
            while time.monotonic() - began < FROZEN_S:
                during.append(status(endpoint, worker.address))
        finally:
            head.start("kill -CONT -1", {})
            endpoint.process.send_signal(signal.SIGCONT)  # what started it there stopped with it
        assert set(during) == {200}

        endpoint.join(joining)
        began = time.monotonic()
        endpoint.change(auth="open", min_replicas=2, max_replicas=2, max_replicas_per_node=1)
        while status(endpoint, joining.address) != 200:
            assert time.monotonic() - began < JOINED_S
            time.sleep(0.2)
        answered = time.monotonic() - began
        assert proxies(worker, endpoint) == [*expected, (joining.address, "haproxy", True)]
        with capsys.disabled():
            print(f"\n{len(during)} requests to the worker while the head was frozen")
            print(f"a node that joined answered {answered:.1f} s after a second replica was desired")
