"""An endpoint's life beside its rollouts: drained, brought back cold without MLflow, asleep, opened by keys.

The tests build on each other in one Serve, in the order in which they stand here. Nobody asserts a time; the seconds
that matter to callers are printed.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from own_versions import EXAMPLE, config_in, edited_in, end_serving, make_version

import raymlops as rm
from raymlops.bundle.load import load
from raymlops.cluster.ports import free_port
from raymlops.lifecycle import keys
from raymlops.lifecycle.remove import remove
from raymlops.lifecycle.sources import spec_of
from raymlops.predictions.read import Reading
from raymlops.serving.control.rest_api import ServeApi

pytestmark = pytest.mark.soak

ROWS = [{"garden": "north", "petal_cm": 1.4}, {"garden": "moon", "petal_cm": None}]
REQUESTS = 40
WAIT_S = 60.0
IDLE = {"min_replicas": 0, "scale_to_zero_after_s": 1.0, "downscale_delay_s": 1.0, "timeout_s": WAIT_S}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder on the path, where the recipe is edited, and end Serve and its controller afterwards."""
    with edited_in(tmp_path_factory.mktemp("life")) as folder:
        yield folder
    end_serving()


@pytest.fixture(scope="module")
def config(folder, ray_local, mlflow_database):
    """Return the configuration: nothing but this says where the cluster, MLflow and the state are."""
    return config_in(folder, name="flower", dashboard_url=ray_local.dashboard_url, mlflow_database=mlflow_database)


@pytest.fixture(scope="module")
def stuck(folder):
    """Return the file as long as which a replica of the third version does not come up."""
    return folder / "stuck"


@pytest.fixture(scope="module")
def versions(config, folder, stuck):
    """Return three versions that are equally good."""
    source = EXAMPLE.read_text()
    loop = f"        while __import__('os').path.exists({str(stuck)!r}):\n            __import__('time').sleep(0.1)\n"
    head = "    def model(self):\n"
    assert source.count(head) == 1
    return [make_version(config, folder, text) for text in (source, source, source.replace(head, head + loop))]


def serving(config, **options):
    """Return the configuration with other settings of the endpoint."""
    return {**config, "serve": {**config["serve"], **options}}


def client(config, **options):
    return rm.Client(f"http://127.0.0.1:{config['serve']['port']}", **options)


def ask(config):
    """Return the version that answers, however long a replica takes to come up."""
    with client(config, timeout_s=WAIT_S, attempt_timeout_s=WAIT_S) as caller:
        return caller.predict("flower", ROWS).model_version


def until(condition):
    """Look again and again until something is so, and return the seconds that it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < WAIT_S
        time.sleep(0.1)
    return time.monotonic() - start


def replicas(config, version):
    """Return what Serve knows of a version's replicas; those that are leaving are among them."""
    applications = ServeApi(config["cluster"]["dashboard"]).get()["applications"]
    return applications[f"flower--v{version}"]["deployments"]["front"]["replicas"]


def status(config, secret):
    """Return the status of an answer to a caller with this key."""
    url = f"http://127.0.0.1:{config['serve']['port']}/models/flower/predict"
    return httpx.post(url, json={"rows": ROWS}, headers={"authorization": f"Bearer {secret}"}).status_code


def logged(config):
    """Return the id of every request in the prediction log, once for each of its rows."""
    return [
        value for batch in Reading(spec_of(config).storage.path, "flower") for value in batch["request_id"].to_pylist()
    ]


def test_the_log_is_complete_after_a_drain(config, versions):
    """Nothing was written before the version was taken off Serve: each request is there once, row by row."""
    rm.deploy(serving(config, log={"flush_s": 60.0}), str(versions[0].version))
    with client(config) as caller:
        answers = [caller.predict("flower", ROWS, request_id=f"ask-{number}") for number in range(REQUESTS)]
    asked = [answer.request_id for answer in answers]
    assert asked == [f"ask-{number}" for number in range(REQUESTS)]
    remove(config)
    assert sorted(logged(config)) == sorted(asked * len(ROWS))


def test_a_version_that_was_taken_down_comes_back_without_mlflow(config, versions):
    """Its files are on this machine and its settings in the state; the alias follows when MLflow answers again."""
    assert rm.deploy(config, str(versions[1].version)).version == 2
    assert "flower--v1" not in ServeApi(config["cluster"]["dashboard"]).get()["applications"]
    away = {**config, "tracking": {"uri": f"http://127.0.0.1:{free_port()}"}}
    start, live = time.monotonic(), []
    record = rm.rollback(away, on_live=lambda _version: live.append(time.monotonic() - start))
    print(f"cold rollback without MLflow: live after {live[0]:.2f} s, told after {time.monotonic() - start:.2f} s")
    assert (record.version, record.previous_version) == (1, 2)
    (warning,) = record.warnings
    assert "the alias champion was not set" in warning
    with client(config) as caller:
        answer = caller.predict("flower", ROWS)
    bundle = versions[0].bundle
    expected = load(bundle.uri, bundle.digest).predict_rows(ROWS)
    assert answer.model_version == "1"
    for got, wanted in zip(answer.outputs, expected, strict=True):
        assert got == pytest.approx(wanted, abs=1e-5)


def test_an_idle_model_goes_and_its_next_caller_is_answered(config, versions):
    """A new version takes the route of one that sleeps, and goes to sleep itself; a request brings a replica back."""
    asleep = serving(config, **IDLE)
    rm.deploy(asleep, str(versions[0].version))
    until(lambda: not replicas(config, 1))
    record = rm.deploy(asleep, str(versions[2].version))
    assert (record.version, record.previous_version) == (3, 1)
    print(f"the last replica went after {until(lambda: not replicas(config, 3)):.1f} s")
    start = time.monotonic()
    assert ask(config) == "3"
    print(f"the first request of an idle model waited {time.monotonic() - start:.1f} s")
    remove(config)


def test_a_revoked_key_is_refused_also_while_a_version_comes_up(config, versions, stuck):
    """Replicas hear of it in seconds, whatever else is going on: here a version that does not come up."""
    locked = serving(config, auth="keys")
    rm.deploy(locked, str(versions[0].version))
    first, second = (keys.create(locked, name) for name in ("product", "shop"))
    assert (first.live, second.live) == (True, True), (first.note, second.note)
    assert [status(config, key.secret) for key in (first, second)] == [200, 200]
    assert status(config, "rk_nobody_" + "x" * 43) == 401
    start = time.monotonic()
    assert keys.revoke(locked, first.key.id).live
    until(lambda: status(config, first.secret) == 401)
    print(f"a revoked key was refused after {time.monotonic() - start:.2f} s")
    stuck.touch()
    with ThreadPoolExecutor(1) as pool:
        deploying = pool.submit(rm.deploy, locked, str(versions[2].version))
        try:
            until(lambda: "flower--v3" in ServeApi(config["cluster"]["dashboard"]).get()["applications"])
            start = time.monotonic()
            assert keys.revoke(locked, second.key.id).live
            until(lambda: status(config, second.secret) == 401)
            print(
                f"a key revoked beside a version that does not come up: refused after {time.monotonic() - start:.2f} s"
            )
            assert not deploying.done()
        finally:
            stuck.unlink()
        assert deploying.result().version == 3
    remove(config)
