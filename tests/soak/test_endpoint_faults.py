"""An endpoint on two nodes whose proxy, index, replicas and second node are killed, one after the other.

Fifty requests a second through ``raymlops.AsyncClient`` as it comes, and five bare ones. Prints p99 and failures of
each phase, and how long the bare ones failed. Takes about four minutes in each proxy mode.
"""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil
import pytest
from own_versions import EXAMPLE, config_in, edited_in, make_version
from steady_load import steady_load, table
from two_nodes import two_nodes

import raymlops as rm
from raymlops.serving.control.rest_api import ServeApi
from raymlops.serving.names import INDEX_APP

pytestmark = pytest.mark.soak

ROWS = [{"garden": "north", "petal_cm": 1.4}]
RATE, BARE_RATE = 50.0, 5.0
LASTS_S = 30.0
"""How long the load goes on after each kill: a proxy that Serve finds dead by its checks is back within that."""
WAIT_S = 60.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder on the path, where the recipe is."""
    with edited_in(tmp_path_factory.mktemp("faults")) as folder:
        yield folder


@pytest.fixture(params=["python", "haproxy"])
def proxy(request):
    return request.param


@pytest.fixture
def cluster(proxy, tmp_path_factory):
    """Return a cluster of two nodes with this proxy, the second node, and the dashboard's URL."""
    with two_nodes(tmp_path_factory.mktemp("home"), proxy=proxy) as found:
        yield found


@pytest.fixture
def config(proxy, cluster, folder, tmp_path_factory, mlflow_database):
    """Return the configuration of an endpoint with a replica on each node."""
    project = tmp_path_factory.mktemp("project")
    data = config_in(project, name="flower", dashboard_url=cluster[2], mlflow_database=mlflow_database)
    two = {"proxy": proxy, "min_replicas": 2, "max_replicas": 2, "max_replicas_per_node": 1}
    return {**data, "serve": {**data["serve"], **two}}


def replicas(config, application):
    details = ServeApi(config["cluster"]["dashboard"], token()).get()
    return details["applications"][application]["deployments"]["front"]["replicas"]


def token():
    from raymlops.cluster.auth import current_token

    return current_token().read_text().strip()


def actor_pids(*names):
    """Return the processes of living actors of these classes."""
    from ray.util.state import list_actors

    found = list_actors(filters=[("state", "=", "ALIVE")], limit=1000)
    return [actor.pid for actor in found if actor.class_name in names]


def kill(pids):
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def haproxy_pids():
    """Return the processes of HAProxy itself, which an actor of Serve looks after."""
    found = [child for pid in actor_pids("HAProxyManager") for child in psutil.Process(pid).children(recursive=True)]
    return [child.pid for child in found if child.name() == "haproxy"]


def until(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def outage(asked, phase):
    """Return the seconds from the first to the last begin of a bare request of a phase that failed."""
    began = [one.began for one in asked if one.phase == phase and one.kind == "bare" and one.error]
    return max(began) - min(began) if began else 0.0


@pytest.fixture
def version(config, folder):
    """Return a good version."""
    return str(make_version(config, folder, EXAMPLE.read_text()).version)


def test_the_clients_callers_notice_no_death(cluster, config, version, tmp_path, capsys):
    """Of the index, a replica, the proxy in each of its processes, and a whole node with a replica on it."""
    nodes, second, _ = cluster
    proxy = config["serve"]["proxy"]
    rm.deploy(config, version)
    application = f"flower--v{version}"
    until(lambda: len({item["node_id"] for item in replicas(config, application)}) == 2)
    base_url = f"http://127.0.0.1:{config['serve']['port']}"
    with steady_load(base_url, "flower", tmp_path / "load", rows=ROWS, rate=RATE, bare_rate=BARE_RATE) as load:

        def go_on(seconds=LASTS_S):
            since = time.time()
            load.wait_for(lambda asked: asked and asked[-1].began - since > seconds, within_s=4 * WAIT_S)

        load.wait_for(lambda asked: len(asked) > 50)
        load.phase("steady")
        go_on(10)
        load.phase("the index killed")
        kill([item["pid"] for item in replicas(config, INDEX_APP)])
        go_on(10)
        load.phase("one of two replicas killed")
        kill([item["pid"] for item in replicas(config, application) if item["node_id"] == second.node_id])
        go_on(15)
        if proxy == "haproxy":
            load.phase("HAProxy killed")
            kill(haproxy_pids())
            go_on()
            load.phase("HAProxy's manager killed")
            kill(actor_pids("HAProxyManager"))
        else:
            load.phase("the proxy killed")
            kill(actor_pids("ProxyActor"))
        go_on()
        load.phase("steady again")
        go_on(10)
        until(lambda: len({item["node_id"] for item in replicas(config, application)}) == 2)
        load.phase("a node killed")
        pids = [item["pid"] for item in replicas(config, application) if item["node_id"] == second.node_id]
        removing = threading.Thread(target=nodes.remove_node, args=(second,), kwargs={"allow_graceful": False})
        removing.start()
        kill(pids)
        go_on()
        removing.join()
        load.stop()
        asked, phases = load.asked(), load.phases
    with capsys.disabled():
        print(f"\n{proxy} proxy, load average {os.getloadavg()[0]:.1f}\n{table(asked, phases)}")
        for phase in phases:
            if seconds := outage(asked, phase):
                print(f"{phase}: bare requests failed for {seconds:.1f} s")
        failures = [one for one in asked if one.error]
        print("\n".join(f"{one.kind} in {one.phase!r} after {one.seconds:.2f} s: {one.error}" for one in failures[:20]))
    assert [one for one in asked if one.kind == "client" and one.error] == []
    quiet = {"steady", "the index killed", "steady again"}
    assert [one for one in asked if one.error and one.phase in quiet] == []
