"""Versions of one model on a real Serve: side by side, exchanged, broken, removed, beside somebody else's application.

The tests build on each other in one Serve, in the order in which they stand here: starting it anew takes ten seconds.
"""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import pytest
import serve_apply
import serving_foreign
from serve_proxy import start_proxy
from serving_bundles import scale_bundle

from raymlops.config.load import load_data
from raymlops.errors import BundleError, ClusterError, DeployError, InvalidRowsError
from raymlops.lifecycle.live.staging import fetch_on_nodes
from raymlops.project import bind
from raymlops.serving.client.client import Client
from raymlops.serving.control.rest_api import ServeApi
from raymlops.serving.names import INDEX_APP
from raymlops.state.store import Deployment, Desired
from raymlops.tuning.sweep import sweep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.records import BundleRef

pytestmark = pytest.mark.integration

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
"""Sixteen bytes, which a websocket's handshake has."""
SETTINGS = {"max_replicas": 1, "cpus_per_replica": 0.1}
ROWS = [{"a": 1.0, "b": 2.0}, {"a": 0.5, "b": 0.5}]
PAUSE_S = 0.02
"""Between two requests of a caller: without one it takes the CPU from the changes that it waits for."""


def ask(url, rows, **options):
    """Ask the model whose route this is."""
    base, _, name = url.removesuffix("/predict").partition("/models/")
    with Client(base) as client:
        return client.predict(name, rows, **options)


@pytest.fixture(scope="module")
def api(ray_local) -> Iterator[ServeApi]:
    from ray import serve

    token = Path(ray_local.token_path).read_text(encoding="utf-8").strip() if ray_local.token_path else None
    start_proxy()
    yield ServeApi(ray_local.dashboard_url, token)
    serve.shutdown()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[int, BundleRef]:
    """Version 1 doubles the sum, version 2 multiplies it by ten, version 3 does not come up."""
    root = tmp_path_factory.mktemp("bundles")
    factors = {1: 2.0, 2: 10.0, 3: 3.0}
    return {version: scale_bundle(root, factor=factors[version], broken=version == 3) for version in factors}


def apply(deployments, **options):
    return serve_apply.apply(Desired(tuple(deployments)), **options)


def deployment(bundles, version: int, role: str, **serve) -> Deployment:
    return Deployment("scale", version, bundles[version], f"run{version}", role, {**SETTINGS, **serve})


def statuses(plan) -> dict[str, str]:
    return {name: application["status"] for name, application in plan.details["applications"].items()}


def replicas(api: ServeApi, app: str) -> set[str]:
    (details,) = api.get()["applications"][app]["deployments"].values()
    return {replica["actor_id"] for replica in details["replicas"]}


@pytest.fixture(scope="module")
def url(api, bundles) -> str:
    """Deploy version 1 and return its route."""
    plan = apply([deployment(bundles, 1, "champion")], api=api, wait_s=300)
    assert statuses(plan) == {"scale--v1": "RUNNING", INDEX_APP: "RUNNING"}
    return f"{plan.listens.base_url}/models/scale"


def test_a_served_version_answers_and_says_who_it_is(url, bundles):
    """(1 + 2) * 2 and (0.5 + 0.5) * 2, by the verified bundle's own code."""
    answer = ask(url, ROWS, request_id="mine")
    assert [output["y"] for output in answer.outputs] == [6.0, 2.0]
    assert (answer.model_version, answer.request_id) == ("1", "mine")
    described = httpx.get(url).json()
    assert (described["digest"], described["warm_up"]["batch_rows"]) == (bundles[1].digest, 1024)
    assert httpx.get(f"{url}/readyz").status_code == 200


def test_the_client_of_the_documents_works_as_it_stands(url):
    """But for the address and the model's name; the label that it sends is found beside the answer."""
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    (block,) = (part for part in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "rm.Client" in part)
    names = {"rows": ROWS}
    exec(block.replace("http://127.0.0.1:8000", url.partition("/models/")[0]).replace('"flights"', '"scale"'), names)
    assert [output["y"] for output in names["answer"].outputs] == [6.0, 2.0]


def test_every_response_names_version_and_request_id_once(url):
    """Serve adds the id that the front left to it; no header is there twice."""
    response = httpx.post(f"{url}/predict", json={"rows": ROWS}, headers={"x-request-id": "mine"})
    assert response.headers.get_list("x-request-id") == ["mine"]
    assert response.headers.get_list("x-model-version") == ["1"]


def test_bad_input_is_refused_through_the_proxy(url):
    """50 MB, bytes that are no text, and a wrong type: each is the client's error, and the next request is answered."""
    assert httpx.post(f"{url}/predict", content=b"x" * 50_000_000).status_code == 413
    assert httpx.post(f"{url}/predict", content=b"\xff\xfe").status_code == 400
    assert httpx.post(f"{url}/predict", content=b"").status_code == 400
    assert httpx.put(f"{url}/predict").status_code == 405
    assert httpx.get(f"{url}/nope").status_code == 404
    with pytest.raises(InvalidRowsError):
        ask(url, [{"a": "one", "b": 2}])
    assert ask(url, ROWS).outputs


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/models/scale/predict", "content-length: 8000001", 413),
        ("/v2/models/scale/infer", "content-length: 8000001", 413),
        ("/models/scale/predict", "content-length: 2\r\nupgrade: h2c\r\nconnection: upgrade, close\r\n\r\n{}", 422),
        (
            "/v2",
            "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: " + KEY,
            400,
        ),
        ("/-/routes", "content-length: 0\r\nconnection: close", 404),
        ("/models/scale/predict", "content-length: 0\r\norigin: https://page.example\r\nconnection: close", 403),
    ],
)
def test_the_proxy_answers_by_itself_what_needs_no_replica(url, path, headers, status):
    """A body that says it is above the model's bound, which the proxy was told, is refused before any of it is sent.

    An offer to upgrade leaves a request what it is, and a websocket that nobody takes is no failure of ours. Routes are
    not listed, and a web page sends nothing to what is open on loopback.
    """
    for warm in ("/models/scale/healthz", "/"):  # what a proxy has answered once, it knows
        assert httpx.get(url.removesuffix("/models/scale") + warm).status_code == 200
    address = urlsplit(url)
    method = "GET" if status == 400 else "POST"
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n\r\n".encode())
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert b'"code"' in body


def test_the_index_lists_the_model(url):
    """The host's root says what is there."""
    (model,) = httpx.get(httpx.URL(url).join("/")).json()["models"]
    assert (model["name"], model["version"]) == ("scale", "1")


def test_the_same_again_restarts_nothing(api, bundles, url):
    """The replica is the same process."""
    before = replicas(api, "scale--v1")
    apply([deployment(bundles, 1, "champion")], api=api, wait_s=300)
    assert replicas(api, "scale--v1") == before


def test_a_changed_limit_is_in_force_without_a_restart(api, bundles, url):
    """At most one row from now on, by the same process."""
    before = replicas(api, "scale--v1")
    apply([deployment(bundles, 1, "champion", max_rows=1)], api=api, wait_s=300)
    assert httpx.post(f"{url}/predict", json={"rows": ROWS}).status_code == 413
    assert replicas(api, "scale--v1") == before
    apply([deployment(bundles, 1, "champion")], api=api, wait_s=300)


def test_a_sweep_beside_the_endpoint_ends_and_the_endpoint_answers(url, storage_path):
    """Of two CPUs the endpoint has a part, so that one trial fits at a time; exactly six end."""
    swept = bind(
        load_data(
            {
                "project": {"name": "beside"},
                "recipe": {"import": "slow_sweep:Reports"},
                "train": {"epochs": 1, "batch_size": 64, "threads_per_worker": 1},
                "sweep": {
                    "num_trials": 6,
                    "scheduler": "none",
                    "sampler": "random",
                    "space": {"train.lr": {"float": [1e-3, 1e-1], "log": True}},
                },
                "storage": {"path": str(storage_path)},
            }
        )
    )
    running = []

    def watch(event):
        running.append(event.counts["running"])
        assert ask(url, ROWS).model_version == "1"

    record = sweep(swept, on_event=watch)
    assert [trial.status for trial in record.trials] == ["complete"] * 6
    assert max(running) == 1


def test_a_version_with_other_code_takes_the_route_and_gives_it_back(api, bundles, url):
    """Both run side by side with a module of one name; not one request fails while the route goes over and back."""
    both = [deployment(bundles, 1, "warm"), deployment(bundles, 2, "champion")]
    back = [deployment(bundles, 1, "champion"), deployment(bundles, 2, "warm")]

    async def ask_until(done: asyncio.Event) -> list[tuple[int, float]]:
        answers = []
        async with httpx.AsyncClient(timeout=60) as client:
            while not done.is_set():
                response = await client.post(f"{url}/predict", json={"rows": ROWS[:1]})
                answers.append((response.status_code, response.json()["outputs"][0]["y"]))
                await asyncio.sleep(PAUSE_S)
        return answers

    async def over_and_back() -> list[tuple[int, float]]:
        done = asyncio.Event()
        asking = asyncio.create_task(ask_until(done))
        await asyncio.to_thread(apply, both, api=api, wait_s=300)
        flipped = replicas(api, "scale--v1"), replicas(api, "scale--v2")
        await asyncio.to_thread(apply, back, api=api, wait_s=300)
        assert flipped == (replicas(api, "scale--v1"), replicas(api, "scale--v2"))
        done.set()
        return await asking

    answers = asyncio.run(over_and_back())
    assert {status for status, _ in answers} == {200}
    assert {value for _, value in answers} == {6.0, 30.0}
    assert ask(url, ROWS).model_version == "1"


@pytest.mark.soak
def test_a_version_that_does_not_come_up_leaves_the_champion(api, bundles, url):
    """Its own message is reported, version 1 answers all the while, and applying what was before removes it."""
    before = [deployment(bundles, 1, "champion")]
    apply(before, api=api, wait_s=300)
    with pytest.raises(DeployError, match="no such layer: gadget"):
        apply([deployment(bundles, 1, "warm"), deployment(bundles, 3, "champion")], api=api, wait_s=300)
    assert ask(url, ROWS).model_version == "1"
    assert "scale--v3" not in statuses(apply(before, api=api, wait_s=300))


def test_a_tampered_bundle_never_becomes_ready(api, bundles, url, tmp_path):
    """The digest comes from the desired state, so a bundle that was changed on disk is refused by the replica.

    Where a bundle is fetched before its version is wanted, each node refuses it then.
    """
    bundle = scale_bundle(tmp_path, factor=5.0)
    code = Path(bundle.uri) / "code" / "serving_scale.py"
    code.chmod(0o644)
    code.write_text(code.read_text().replace("5.0", "6.0"))
    spec = load_data({"project": {"name": "scale"}, "recipe": {"import": "any:Recipe"}}).spec
    fetch_on_nodes(spec, bundles[1], spec.serve)
    with pytest.raises(BundleError, match="serving_scale"):
        fetch_on_nodes(spec, bundle, spec.serve)
    bad = Deployment("scale", 4, bundle, "run4", "champion", SETTINGS)
    with pytest.raises(DeployError, match="serving_scale"):
        apply([deployment(bundles, 1, "warm"), bad], api=api, wait_s=300)
    assert ask(url, ROWS).model_version == "1"
    apply([deployment(bundles, 1, "champion")], api=api, wait_s=300)


def test_a_foreign_application_survives_and_nothing_dead_is_left(api, bundles, url):
    """It runs on in the same process when models come and go, and when none is left there is no endpoint of ours."""
    config = {
        "name": "foreign",
        "route_prefix": "/foreign",
        "import_path": "serving_foreign:app",
        "runtime_env": {"env_vars": {"PYTHONPATH": str(Path(serving_foreign.__file__).parent), "SECRET": "kept"}},
    }
    details = api.get()
    ours = [item["deployed_app_config"] for item in details["applications"].values()]
    api.put({"http_options": details["http_options"], "proxy_location": "HeadOnly", "applications": [*ours, config]})
    base = str(httpx.URL(url).join("/")).rstrip("/")
    apply([deployment(bundles, 1, "champion", max_rows=10)], api=api, wait_s=300)
    answer = _get_when_up(f"{base}/foreign").json()
    assert answer["secret"] == "kept"
    assert statuses(apply([], api=api, wait_s=300)) == {"foreign": "RUNNING"}
    assert httpx.get(f"{base}/foreign").json() == answer
    assert httpx.post(f"{url}/predict", json={"rows": ROWS}).status_code == 404


def test_a_dashboard_that_refuses_us_is_named(api, ray_local):
    """A wrong token is a cluster error that says what to export, and does not repeat the token."""
    if ray_local.token_path is None:
        pytest.skip("this cluster takes no token")
    with pytest.raises(ClusterError, match="refuses us") as caught:
        ServeApi(ray_local.dashboard_url, "wrong-token").get()
    assert "wrong-token" not in str(caught.value)


def _get_when_up(url: str) -> httpx.Response:
    for _ in range(120):
        response = httpx.get(url)
        if response.status_code == 200:
            return response
        asyncio.run(asyncio.sleep(0.25))
    raise AssertionError(response.text)
