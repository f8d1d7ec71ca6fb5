"""The head of a cluster is lost, and another one takes its place."""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace

import head_restart
import httpx
import pytest
from head_restart import NAME, SERVE
from machines import NEEDS_MACHINES, OUTSIDE, line_of, machines, sized
from postgres import NEEDS_POSTGRES, postgres
from redis_server import NEEDS_REDIS, redis_server
from redis_server import PASSWORD as REDIS_PASSWORD
from serving_bundles import MIXED_ROWS

from raymlops.lifecycle.live.transitions import ROUTE, Request, bring
from raymlops.state.lease import holder_of
from raymlops.state.store import State

pytestmark = [pytest.mark.soak, NEEDS_MACHINES, NEEDS_POSTGRES, NEEDS_REDIS]

PASSWORD = "hunter2"
"""Of the state database."""
STATE_FILE = "/dev/shm/state_url"
"""On the head alone: each machine has its own /dev/shm."""
AWAY_S = 15.0
"""How long there is no head."""
WAIT_S = 180.0


class Caller(threading.Thread):
    """Asks one proxy, twenty times a second."""

    def __init__(self, address):
        super().__init__()
        self.url = f"http://{address}:8000/models/{NAME}/predict"
        self.statuses, self.over = [], threading.Event()

    def run(self):
        with httpx.Client(timeout=20) as client:
            while not self.over.wait(0.05):
                try:
                    self.statuses.append(client.post(self.url, json={"rows": MIXED_ROWS}).status_code)
                except httpx.HTTPError as error:
                    self.statuses.append(repr(error))


def until(condition):
    """Wait for a condition, and return the seconds that it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < WAIT_S
        time.sleep(0.25)
    return time.monotonic() - start


def version_at(address):
    try:
        return httpx.get(f"http://{address}:8000/models/{NAME}", timeout=5).headers.get("x-model-version")
    except httpx.HTTPError:
        return None


def wants(url, version):
    """Write that another version of the same bundle should be live, and do nothing for it."""
    with State.open(url) as state:
        (live,) = state.deployments(NAME)
        new = replace(live, version=version)
        goal = {**ROUTE, "configured": True}
        request = Request("deploy", "a test", "me", state.now(), SERVE.ready_timeout_s)
        state.change(NAME, lambda model: bring(model, new, goal=goal, request=request, up=False))


def start_head(head, url):
    """Start it as a launcher does, with the state's credentials in a file."""
    head.start(f"umask 077; echo '{url}' > {STATE_FILE}", {})
    head.start(f"{sized(line_of('head'), cpus=0)} --redis-password={REDIS_PASSWORD}", {})


def knows_the_password(machine):
    """Return whether any process of a machine has it in its environment or on its command line."""
    found = machine.start("cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n'", {})
    assert "ray::" in found
    return PASSWORD in found


def test_a_head_that_was_lost_is_replaced_without_a_command(tmp_path, tmp_path_factory, capsys):
    """Nobody who asks another node's proxy notices; then the cluster is the same, with its controller."""
    folder = tmp_path / "files"
    folder.mkdir()
    with ExitStack() as stack:
        head, *workers = stack.enter_context(machines(tmp_path, number=3))
        redis = stack.enter_context(redis_server(tmp_path, address=OUTSIDE))
        url = stack.enter_context(postgres(tmp_path_factory.mktemp("postgres"), address=OUTSIDE))
        assert PASSWORD in url
        for machine in (head, *workers):
            (machine.home / "node.env").write_text(f"RAYMLOPS_GCS_STORAGE={redis}/test\n")
        start_head(head, url)
        for worker in workers:
            worker.start(sized(line_of("worker"), cpus=1), {"RAY_HEAD_IP": head.address})
        program = f"{sys.executable} {head_restart.__file__} {folder} {STATE_FILE}"
        head.start(program, {"RAY_AUTH_MODE": "token"}, timeout_s=300)
        until(lambda: {version_at(machine.address) for machine in (head, *workers)} == {"1"})
        until(lambda: holder_of(url, "controller"))
        assert [knows_the_password(machine) for machine in (head, *workers)] == [False] * 3
        before = holder_of(url, "controller")

        callers = [Caller(worker.address) for worker in workers]
        for caller in callers:
            caller.start()
        try:
            time.sleep(3)
            asked = [len(caller.statuses) for caller in callers]
            head.kill()
            time.sleep(AWAY_S)
            head.boot()
            seconds = {"ray start": -time.monotonic()}
            start_head(head, url)
            seconds["ray start"] += time.monotonic()
            seconds["the head's proxy answers"] = until(lambda: version_at(head.address) == "1")
            seconds["a controller holds the lease"] = until(lambda: holder_of(url, "controller"))
            wants(url, 2)
            addresses = [machine.address for machine in (head, *workers)]
            seconds["what is desired then is live"] = until(lambda: {*map(version_at, addresses)} == {"2"})
        finally:
            for caller in callers:
                caller.over.set()
                caller.join()
        with capsys.disabled():
            print(f"\n{json.dumps({name: round(value, 1) for name, value in seconds.items()})}")
            print(f"controller: {before}; then {holder_of(url, 'controller')}")
            since = [len(caller.statuses) - was for caller, was in zip(callers, asked, strict=True)]
            print(f"{since} requests to the workers' proxies since the head was lost")
    assert [{*caller.statuses} for caller in callers] == [{200}, {200}]
