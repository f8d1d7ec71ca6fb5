"""An endpoint under a steady load, while versions come and go and processes die: nobody who uses the client fails.

Fifty requests a second through ``raymlops.AsyncClient`` as it comes, and five bare ones. Each answer must be of a
version that was live while it was asked for. Prints p99 a phase and the seconds of each rollback. Takes about four
minutes in each proxy mode.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager

import pytest
from lifetimes import lifetimes, strangeness
from local_ray import local_ray
from own_versions import EXAMPLE, config_in, controller_pid, edited_in, make_version
from steady_load import steady_load, table

import raymlops as rm
from raymlops.errors import DeployError
from raymlops.lifecycle.overview import events, overview
from raymlops.lifecycle.rollout.follow import follow_rollout
from raymlops.serving.control.rest_api import ServeApi

pytestmark = pytest.mark.soak

ROWS = [{"garden": "north", "petal_cm": 99.0}]
ENCODE = "        ids = {"
MODEL = "    def model(self):\n"
FAILS = '        if (columns["petal_cm"] > 50).any():\n            raise ValueError("too long")\n'
CRASHES = """        from ray import serve

        try:
            serve.get_replica_context()
        except Exception:
            pass
        else:
            raise OSError("no such layer")
"""
RATE, BARE_RATE = 50.0, 5.0
LASTS_S = 10.0
"""How long the load goes on after each change, so that the phase has some hundred requests."""
FLIP_S = 2.0
"""How long after its last moment on the record a version may go on being given requests: what a flip takes when the
machine is busy; alone it is 0.2 s."""
IN_FLIGHT = 5
"""Bare requests that a process may take with it when it is killed."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder on the path, where the recipe is edited."""
    with edited_in(tmp_path_factory.mktemp("never-down")) as folder:
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
        rollout = {"error_margin": 0.3, "slow_margin": 0.4, "slow_s": 2.0, "steps": [20, 50, 100], "bake_s": 3.0}
        serve = {
            **data["serve"],
            "rollout": {**rollout, "max_wait_s": 120.0, "on_no_verdict": "abort"},
            "proxy": request.param,
        }
        yield {**data, "serve": {**serve, "max_replicas": 2, "upscale_delay_s": 0.0}}


@pytest.fixture(scope="module")
def versions(config, folder):
    """Return four versions: two good ones, one that does not come up, one that fails at long petals."""
    source = EXAMPLE.read_text()
    assert source.count(ENCODE) == source.count(MODEL) == 1
    sources = [source, source, source.replace(MODEL, MODEL + CRASHES), source.replace(ENCODE, FAILS + ENCODE)]
    return [make_version(config, folder, text).version for text in sources]


def look(config):
    (model,) = overview(config)
    return model


def replicas(config, version):
    details = ServeApi(config["cluster"]["dashboard"]).get()
    return [item["pid"] for item in details["applications"][f"flower--v{version}"]["deployments"]["front"]["replicas"]]


def serve_controller_pid():
    import ray
    from ray.util.state import list_actors

    ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    (actor,) = list_actors(filters=[("class_name", "=", "ServeController"), ("state", "=", "ALIVE")])
    return actor.pid


@contextmanager
def timed(what, seconds):
    start = time.monotonic()
    yield
    seconds[what] = time.monotonic() - start


def test_nobody_fails_while_everything_changes(config, versions, tmp_path, capsys):
    """Through the client none fails, bare at most what was in flight; only versions that are live answer."""
    good, other, crashing, failing = versions
    base_url = f"http://127.0.0.1:{config['serve']['port']}"
    rm.deploy(config, str(good))
    rollbacks = {}
    with steady_load(base_url, "flower", tmp_path / "load", rows=ROWS, rate=RATE, bare_rate=BARE_RATE) as load:

        def go_on(seconds=LASTS_S):
            since = time.time()
            load.wait_for(lambda asked: asked[-1].began - since > seconds, within_s=240)

        load.wait_for(lambda asked: len(asked) > 50)
        load.phase("steady")
        go_on()
        load.phase("a good update")
        rm.deploy(config, str(other))
        go_on()
        load.phase("an update that crashes")
        with pytest.raises(DeployError, match="no such layer"):
            rm.deploy(config, str(crashing))
        load.phase("a canary that errs")
        record = rm.deploy(config, str(failing), canary=20, bake_s=60)
        assert follow_rollout(config, record.rollout_id, on_line=lambda _line: None).status == "aborted"
        load.phase("a canary that is good")
        record = rm.deploy(config, str(good), steps=[20, 50])
        load.phase("... its controller killed")
        os.kill(controller_pid(config), signal.SIGKILL)
        assert follow_rollout(config, record.rollout_id, on_line=lambda _line: None).status == "promoted"
        load.phase("a rollback, warm")
        with timed("warm", rollbacks):
            assert rm.rollback(config).version == other
        go_on()
        load.phase("two replicas")
        more = {**config, "serve": {**config["serve"], "min_replicas": 2}}
        rm.deploy(more, str(other))
        load.wait_for(lambda _asked: len(replicas(config, other)) == 2)
        go_on()
        load.phase("one of two replicas killed")
        os.kill(replicas(config, other)[0], signal.SIGKILL)
        go_on()
        load.phase("Serve's controller killed")
        os.kill(serve_controller_pid(), signal.SIGKILL)
        go_on()
        load.phase("one replica again")
        rm.deploy(config, str(good), again=True)  # live anew, so that a rollback goes to it again
        rm.deploy({**config, "serve": {**config["serve"], "downscale_delay_s": 1.0}}, str(other))
        go_on()
        load.phase("the champion hangs")
        pids = replicas(config, other)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            with timed("while the champion hangs", rollbacks):
                assert rm.rollback(config).version == good
            load.phase("... after the rollback")
            go_on()
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        load.stop()
        asked, phases = load.asked(), load.phases
    spans = lifetimes(events(config))
    answered = [one for one in asked if one.version]
    strange = max(answered, key=lambda one: strangeness(one, spans))
    failures = [one for one in asked if one.error]
    with capsys.disabled():
        print(f"\n{config['serve']['proxy']} proxy, load average {os.getloadavg()[0]:.1f}\n{table(asked, phases)}")
        print("rollbacks:", ", ".join(f"{what} {seconds:.2f} s" for what, seconds in rollbacks.items()))
        print(f"latest by a version without traffic: {strangeness(strange, spans):.2f} s, in {strange.phase!r}")
        print("\n".join(f"{one.kind} in {one.phase!r} after {one.seconds:.2f} s: {one.error}" for one in failures[:20]))
    assert [one for one in failures if one.kind == "client"] == []
    assert strangeness(strange, spans) <= FLIP_S
    assert {one.version for one in answered} == {str(good), str(other)}
    taken = [one for one in failures if one.phase in {"one of two replicas killed", "the champion hangs"}]
    assert len(taken) <= 2 * IN_FLIGHT
    assert [one for one in failures if one not in taken] == []
