"""Two states on one Serve: what each verb of one leaves of the other, and the controllers of both.

The tests build on each other in one Serve, in the order in which they stand here.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import ray
from own_versions import end_serving
from ray.util import list_named_actors
from serve_proxy import start_proxy
from serving_bundles import scale_bundle
from states import converge, deploy, opened, take_down

from raymlops.config.schema import ProjectSpec
from raymlops.config.serve import ServeSection
from raymlops.errors import TakenError
from raymlops.lifecycle.keys import bring
from raymlops.lifecycle.rollout.actor import ensure_running
from raymlops.lifecycle.rollout.controller import Controller
from raymlops.lifecycle.rollout.evidence import Reports
from raymlops.serving.control.details import configs
from raymlops.serving.control.rest_api import ServeApi
from raymlops.serving.telemetry.rollout_counts import CONTROLLER, NAMESPACE, controller_of
from raymlops.state.keys import create_key
from raymlops.version import __version__, code_version

pytestmark = pytest.mark.integration

SECTION = ServeSection(max_replicas=1, cpus_per_replica=0.1, ready_timeout_s=90.0)
ROWS = {"rows": [{"a": 1.0, "b": 2.0}]}
PAUSE_S = 0.02
"""Between two requests of a caller: without one it takes the CPU from the changes that it waits for."""


@pytest.fixture(scope="module")
def api(ray_local):
    token = Path(ray_local.token_path).read_text(encoding="utf-8").strip() if ray_local.token_path else None
    start_proxy()
    yield ServeApi(ray_local.dashboard_url, token)
    end_serving()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return scale_bundle(tmp_path_factory.mktemp("bundles"), factor=2.0)


@pytest.fixture(scope="module")
def specs(tmp_path_factory, api):
    """Return two projects, each with a folder of its own for its state."""
    return {
        name: ProjectSpec.model_validate(
            {
                "project": {"name": name},
                "recipe": {"import": "tiny:Tiny"},
                "storage": {"path": str(tmp_path_factory.mktemp(name))},
                "cluster": {"dashboard": api.dashboard_url},
            }
        )
        for name in ("shop", "lab")
    }


@pytest.fixture(scope="module")
def states(specs):
    with (
        opened(Path(specs["shop"].storage.path), "state") as shop,
        opened(Path(specs["lab"].storage.path), "state") as lab,
    ):
        yield {"shop": shop, "lab": lab}


@pytest.fixture(scope="module")
def deployed(states, api, bundle):
    """Return how a version of a project's model is made live."""

    def do(project, version, *, name=None):
        return deploy(states[project], api, name or project, version, bundle=bundle, section=SECTION)

    return do


def replicas(api, app):
    (details,) = api.get()["applications"][app]["deployments"].values()
    return {replica["actor_id"] for replica in details["replicas"]}


def url(api, name):
    options = api.get()["http_options"]
    return f"http://127.0.0.1:{options['port']}/models/{name}/predict"


@contextmanager
def answering(where):
    """Ask a model again and again until the block ends; each request must be answered."""
    over, got = threading.Event(), []

    def ask():
        with httpx.Client() as client:
            while not over.wait(PAUSE_S):
                got.append(client.post(where, json=ROWS).status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert got
    assert set(got) == {200}


def test_a_second_state_leaves_the_first_ones_model_answering(api, states, deployed):
    """Through a deploy, a new version, a key, a restore, its controller's first step, a refusal and a removal."""
    deployed("shop", 1)
    before = replicas(api, "shop--v1")
    with answering(url(api, "shop")):
        (said, *_) = deployed("lab", 1).warnings
        assert "left alone: raymlops, shop--v1" in said
        deployed("lab", 2)
        key, _ = create_key(states["lab"], name="caller", models=["lab"], now=datetime.now(UTC))
        bring(states["lab"], api, key, serve=SECTION)
        converge(states["lab"], api)
        Controller(states["lab"], api, serve=SECTION, reports=Reports()).step(datetime.now(UTC))
        with pytest.raises(TakenError, match="belongs to state"):
            deployed("lab", 2, name="shop")
        assert httpx.post(url(api, "lab"), json=ROWS).json()["outputs"] == [{"y": 6.0}]
        owners = {name: config["deployments"][0]["user_config"]["state"]["id"] for name, config in live(api).items()}
        mine = states["lab"].owner().id
        assert {name for name, owner in owners.items() if owner == mine} == {"lab--v1", "lab--v2"}
        take_down(states["lab"], api, "lab")
    assert replicas(api, "shop--v1") == before
    assert sorted(live(api)) == ["raymlops", "shop--v1"]


def live(api):
    return configs(api.get())


def test_a_mark_is_added_without_a_restart(api, states, deployed):
    """What an earlier raymlops deployed carries none: the same replica gets it, answering all the while."""
    bare = live(api)
    for config in bare.values():
        del config["deployments"][0]["user_config"]["state"]
    api.put({"http_options": api.get()["http_options"], "applications": list(bare.values())})
    before = replicas(api, "shop--v1")
    with answering(url(api, "shop")):
        converge(states["shop"], api)
        deployed("shop", 1)  # which waits until it runs with that
    assert replicas(api, "shop--v1") == before
    assert {config["deployments"][0]["user_config"]["state"]["id"] for config in live(api).values()} == {
        states["shop"].owner().id
    }


@ray.remote(num_cpus=0)
class OtherCode:
    """A controller that another checkout of this release started."""

    def status(self):
        return {"word": "running", "pid": 0, "release": __version__}

    def stop(self):
        return None


def test_a_controller_of_other_code_is_replaced(api, specs, states):
    """After an upgrade in place the modules that it has yet to import are not its own."""
    name = controller_of(states["lab"].owner().id)
    OtherCode.options(name=name, namespace=NAMESPACE, lifetime="detached").remote()
    assert ensure_running(specs["lab"], states["lab"], dashboard_url=api.dashboard_url, must_answer=True) is None
    status = ray.get(ray.get_actor(name, namespace=NAMESPACE).status.remote())
    assert (status["state"], status["release"]) == (states["lab"].owner().id, code_version())


def test_each_state_has_a_controller_of_its_own(api, specs, states):
    """Neither ends the other's."""

    def named():
        found = list_named_actors(all_namespaces=True)
        return {one["name"] for one in found if one["namespace"] == NAMESPACE and one["name"].startswith(CONTROLLER)}

    own = {name: controller_of(state.owner().id) for name, state in states.items()}
    for name, expected in (("lab", {own["lab"]}), ("shop", {own["shop"], own["lab"]})):
        running = ensure_running(specs[name], states[name], dashboard_url=api.dashboard_url, must_answer=True)
        assert running is None
        assert named() == expected
    for name, state in states.items():
        actor = ray.get_actor(own[name], namespace=NAMESPACE)
        assert ray.get(actor.status.remote())["state"] == state.owner().id
