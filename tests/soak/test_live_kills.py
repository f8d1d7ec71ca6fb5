"""kill -9 of a verb, or of the controller, at random moments of every change of what is live, under load.

Whoever is killed: without a further command the state, Serve's route and MLflow's alias agree again within a minute,
and nobody who uses the client fails. Prints the seconds of each. ``KILLS`` and ``SEED`` say how many, and which.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from local_ray import local_ray
from own_versions import EXAMPLE, config_in, controller_pid, edited_in, make_version
from steady_load import steady_load, table

import raymlops as rm
from raymlops.lifecycle.registration.aliases import MlflowAliases
from raymlops.lifecycle.sources import spec_of
from raymlops.serving.control.details import routes, status_of
from raymlops.serving.control.rest_api import ServeApi
from raymlops.serving.names import INDEX_APP, app_name, route_of
from raymlops.state.database import state_url
from raymlops.state.identity import Owner
from raymlops.state.store import State

pytestmark = pytest.mark.soak

KILLS = int(os.environ.get("KILLS", "40"))
SEED = int(os.environ.get("SEED", "1"))
WITHIN_S = 60.0
ROWS = [{"garden": "north", "petal_cm": 2.0}]
VERB = """
import json, sys
from raymlops.lifecycle import deploy, rollback
import raymlops.lifecycle.rollout.actor, mlflow
config, name, arguments = json.loads(sys.argv[1])
verb = getattr({"rollback": rollback}.get(name, deploy), name)
print("go", flush=True)
try:
    verb(config, **arguments)
except Exception as error:
    print(type(error).__name__, error, flush=True)
"""
LASTS_S = {"deploy": 6.0, "canary": 5.0, "promote": 3.0, "rollback": 1.0}
"""How long a verb takes at most, about: the moments of the kills are drawn from it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with edited_in(tmp_path_factory.mktemp("live-kills")) as folder:
        yield folder


@pytest.fixture(scope="module")
def config(folder, tmp_path_factory, mlflow_database):
    """Return the configuration of an endpoint on a Ray of its own, with short rollouts."""
    with local_ray(tmp_path_factory.mktemp("home")) as connection:
        data = config_in(
            tmp_path_factory.mktemp("project"),
            name="flower",
            dashboard_url=connection.dashboard_url,
            mlflow_database=mlflow_database,
        )
        rollout = {"error_margin": 0.3, "slow_margin": 0.4, "slow_s": 2.0, "bake_s": 1.0, "max_wait_s": 30.0}
        rollout["on_no_verdict"] = "abort"
        yield {**data, "serve": {**data["serve"], "rollout": rollout}}


def disorder(config):
    """Return what does not agree yet; empty at rest."""
    spec = spec_of(config)
    with State.open(state_url(spec)) as state:
        model = state.model("flower")
    if model.coming or model.rollout is not None:
        return f"on its way: {[one.version for one in model.coming]} {model.rollout and model.rollout.reason}"
    (champion,) = [item.version for item in model.deployments if item.role == "champion"]
    details = ServeApi(config["cluster"]["dashboard"]).get()
    desired = {app_name(item.name, item.version) for item in model.deployments} | {INDEX_APP}
    statuses = {name: status_of(details, name) for name in details["applications"]}
    if set(statuses) != desired or set(statuses.values()) != {"RUNNING"}:
        return f"Serve has {statuses}, desired are {sorted(desired)}"
    if (holder := routes(details).get(route_of("flower"))) != app_name("flower", champion):
        return f"{holder} holds the route, champion is {champion}"
    alias = MlflowAliases(spec, Owner()).champion("flower")
    return "" if alias == champion else f"the alias names {alias}, champion is {champion}"


def settled_after(config):
    """Return the seconds until everything agrees, twice in a row."""
    begun = time.monotonic()
    found, since = "not looked at", None
    while True:
        found = disorder(config)
        since = None if found else since or time.monotonic()
        if since is not None and time.monotonic() - since > 1.0:
            return since - begun
        assert time.monotonic() - begun < WITHIN_S, found
        time.sleep(0.2)


def test_whatever_is_killed_it_converges(config, folder, tmp_path, capsys):
    """40 kills in deploys, canaries, promotions and rollbacks, of the verb or of the controller."""
    versions = [make_version(config, folder, EXAMPLE.read_text()).version for _ in range(3)]
    rm.deploy(config, str(versions[0]))
    rm.deploy(config, str(versions[1]))
    draw, seconds = random.Random(SEED), []
    base_url = f"http://127.0.0.1:{config['serve']['port']}"
    with steady_load(base_url, "flower", tmp_path / "load", rows=ROWS, rate=30.0, bare_rate=1.0) as load:
        load.phase("kills")
        for number in range(KILLS):
            with State.open(state_url(spec_of(config))) as state:
                live = next(item.version for item in state.deployments("flower") if item.role == "champion")
            other = str(draw.choice([version for version in versions if version != live]))
            kind = ("deploy", "canary", "promote", "rollback")[number % 4]
            name = "deploy" if kind == "canary" else kind
            arguments = {"version": other, "again": True} if kind != "rollback" else {}
            arguments |= {"steps": [50, 100]} if kind == "canary" else {}
            victim = draw.choice(["verb", "controller"])
            moment = draw.uniform(0.0, LASTS_S[kind])
            with subprocess.Popen(
                [sys.executable, "-c", VERB, json.dumps([config, name, arguments])], stdout=subprocess.PIPE, text=True
            ) as verb:
                assert verb.stdout.readline() == "go\n"
                time.sleep(moment)
                os.kill(verb.pid if victim == "verb" else controller_pid(config), signal.SIGKILL)
                said = verb.stdout.read().strip()
            took = settled_after(config)
            seconds.append(took)
            with capsys.disabled():
                print(f"{number:2} {kind:8} of {other}, {victim:10} after {moment:4.1f} s: {took:4.1f} s {said[:100]}")
        load.stop()
        asked, phases = load.asked(), load.phases
    with capsys.disabled():
        print(f"{KILLS} kills, seed {SEED}: converged in {max(seconds):.1f} s at most\n{table(asked, phases)}")
    assert [one for one in asked if one.kind == "client" and one.error] == []
