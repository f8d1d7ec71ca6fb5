"""A champion whose shadow sleeps, hangs and differs: its callers notice nothing, and all of it is counted.

Fifty requests a second through ``raymlops.AsyncClient`` and five bare ones. Prints p99 of each phase. Takes about three
minutes.
"""

from __future__ import annotations

import os
import re
import signal
import time

import httpx
import pytest
from exported_metrics import exported
from local_ray import local_ray
from own_versions import EXAMPLE, config_in, edited_in, make_version
from steady_load import steady_load, table

import raymlops as rm
from raymlops.lifecycle.sources import spec_of
from raymlops.predictions.read import Reading
from raymlops.serving.control.rest_api import ServeApi
from raymlops.serving.telemetry.metric_families import FAMILIES

pytestmark = pytest.mark.soak

ROWS = [{"garden": "north", "petal_cm": 99.0}]
ENCODE = "        ids = {"
SLEEPS = '        if (columns["petal_cm"] > 50).any():\n            __import__("time").sleep(5)\n'
AS_IT_IS = "softmax(1)"
REVERSED = "softmax(1).flip(1)"
RATE, BARE_RATE = 50.0, 5.0
PHASE_S = 30.0
WAIT_S = 60.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder on the path, where the recipe is edited."""
    with edited_in(tmp_path_factory.mktemp("shadow")) as folder:
        yield folder


@pytest.fixture(scope="module", params=["python", "haproxy"])
def config(request, folder, tmp_path_factory, mlflow_database):
    """Return the configuration of an endpoint on a Ray of its own, in each proxy mode."""
    with local_ray(tmp_path_factory.mktemp("home"), proxy=request.param) as connection:
        data = config_in(
            tmp_path_factory.mktemp("project"),
            name="flower",
            dashboard_url=connection.dashboard_url,
            mlflow_database=mlflow_database,
        )
        yield {**data, "serve": {**data["serve"], "proxy": request.param}}


@pytest.fixture(scope="module")
def versions(config, folder):
    """Return three versions: a good one, one that sleeps at long petals, one that answers in reverse."""
    source = EXAMPLE.read_text()
    assert source.count(ENCODE) == source.count(AS_IT_IS) == 1
    sources = [source, source.replace(ENCODE, SLEEPS + ENCODE), source.replace(AS_IT_IS, REVERSED)]
    return [str(make_version(config, folder, text, compare_answers=False).version) for text in sources]


def replica_pid(config, version):
    details = ServeApi(config["cluster"]["dashboard"]).get()
    (replica,) = details["applications"][f"flower--v{version}"]["deployments"]["front"]["replicas"]
    return replica["pid"]


def metric(name, version):
    """Return a counter of a version, as the nodes export it."""
    import ray

    total, family = 0.0, exported(FAMILIES[name])
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        lines = httpx.get(url, timeout=10, trust_env=False).text.splitlines()
        mine = [line for line in lines if line.startswith(f"{family}{{") and f'model_version="{version}"' in line]
        total += sum(float(re.split(r"\s+", line.rpartition("}")[2].strip())[0]) for line in mine)
    return total


def until(condition):
    """Look again and again until something is so; return what it is."""
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return found


def shadows(config, version):
    """Return the differences of the copies that a version answered, as the prediction log has them."""
    columns = ["route", "difference"]
    batches = Reading(spec_of(config).storage.path, "flower", version=int(version), columns=columns, labels=False)
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert {row["route"] for row in rows} == {"shadow"}
    return [row["difference"] for row in rows]


def test_a_shadow_moves_nobody(config, versions, tmp_path, capsys):
    """It sleeps, its process is stopped, it gives something else: the champion answers all, and what it did is told."""
    champion, sleeping, other = versions
    rm.deploy(config, champion)
    rm.deploy(config, sleeping, promote=False)
    rm.deploy(config, other, promote=False)
    base_url = f"http://127.0.0.1:{config['serve']['port']}"
    with steady_load(base_url, "flower", tmp_path / "load", rows=ROWS, rate=RATE, bare_rate=BARE_RATE) as load:

        def go_on():
            since = time.time()
            load.wait_for(lambda asked: asked[-1].began - since > PHASE_S, within_s=4 * WAIT_S)

        load.wait_for(lambda asked: len(asked) > 50)
        load.phase("no shadow")
        go_on()
        rm.deploy(config, sleeping, shadow=100)
        load.phase("a shadow that sleeps")
        go_on()
        load.phase("... whose process is stopped")
        pid = replica_pid(config, sleeping)
        os.kill(pid, signal.SIGSTOP)
        try:
            go_on()
        finally:
            os.kill(pid, signal.SIGCONT)
        load.phase("a shadow that differs")
        rm.deploy(config, sleeping, shadow=0)
        rm.deploy(config, other, shadow=100)
        go_on()
        load.stop()
        asked, phases = load.asked(), load.phases
    dropped = until(lambda: metric("raymlops_shadow_dropped", sleeping))
    different = until(lambda: metric("raymlops_shadow_mismatches", other))
    differences = until(lambda: shadows(config, other))
    with capsys.disabled():
        load1, _, _ = os.getloadavg()
        print(f"\n{config['serve']['proxy']} proxy, load average {load1:.1f}\n{table(asked, phases)}")
        print(f"copies dropped: {dropped:.0f}; different answers: {different:.0f}, logged {len(differences)}")
    assert [one for one in asked if one.error] == []
    assert {one.version for one in asked} == {champion}
    assert min(differences) > 0
