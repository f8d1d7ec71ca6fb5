"""One's own recipe from training to a live endpoint, and what becomes of the endpoint when its code changes.

Everything goes through the public functions and one configuration. The tests build on each other in one Serve, in the
order in which they stand here: starting it anew takes ten seconds.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import pytest
from own_versions import EXAMPLE, config_in, edited_in, end_serving, make_version

import raymlops as rm
from raymlops.arrays import Column
from raymlops.bundle.load import load
from raymlops.errors import DeployError, InsufficientResourcesError, NotFoundError
from raymlops.lifecycle.overview import events
from raymlops.lifecycle.remove import remove, remove_version
from raymlops.lifecycle.restore import restore
from raymlops.lifecycle.sources import spec_of, state_of
from raymlops.predictions.log import PredictionLog
from raymlops.predictions.owner import mark_owner
from raymlops.predictions.read import Reading
from raymlops.predictions.served import RequestRecord
from raymlops.predictions.settings import LogSettings
from raymlops.registry.versions import Registry
from raymlops.serving.client.client import Client
from raymlops.serving.control.rest_api import ServeApi
from raymlops.signature import Signature
from raymlops.state.database import state_url
from raymlops.state.store import State
from raymlops.storage.store import Store
from raymlops.tracking.client import tracker

pytestmark = pytest.mark.integration

ROWS = [{"garden": "north", "petal_cm": 1.4}, {"garden": "moon", "petal_cm": None}]
AS_IT_IS = "softmax(1)"
REVERSED = "softmax(1).flip(1)"
WAIT_S = 300.0
RETENTION_DAYS = 90
"""As configured by default."""


def ask(url, rows, **options):
    """Ask the model whose route this is."""
    base, _, name = url.removesuffix("/predict").partition("/models/")
    with Client(base) as client:
        return client.predict(name, rows, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder on the path, where the recipe is edited, and end Serve and its controller afterwards."""
    with edited_in(tmp_path_factory.mktemp("own")) as folder:
        yield folder
    end_serving()


@pytest.fixture(scope="module")
def config(folder, ray_local, mlflow_database):
    """Return the configuration: nothing but this says where the cluster, MLflow and the state are."""
    return config_in(folder, name="iris-like", dashboard_url=ray_local.dashboard_url, mlflow_database=mlflow_database)


def answered(record, ref):
    """Return whether the route answers with this version, and as its own bundle does."""
    answer = ask(record.url, ROWS)
    expected = load(ref.bundle.uri, ref.bundle.digest).predict_rows(ROWS)
    same = all(got == pytest.approx(wanted, abs=1e-5) for got, wanted in zip(answer.outputs, expected, strict=True))
    return (answer.model_version, same) == (str(ref.version), True)


def requests(config):
    """Return the ids of the requests in the log, once for each of their rows."""
    try:
        return [
            text
            for batch in Reading(spec_of(config).storage.path, "iris-like")
            for text in batch["request_id"].to_pylist()
        ]
    except NotFoundError:  # not one
        return []


def until(condition):
    """Ask until something is so."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def desired(config):
    with State.open(state_url(spec_of(config))) as state:
        return {item.version: item.role for item in state.deployments()}


def actions(config):
    """Return what was done by verbs, without what the controller records whenever its own clock says so.

    It compares aliases every 30 seconds, also while a verb has yet to set that of the version that just went live, and
    on a busy machine MLflow takes longer to answer than it waits.
    """
    by_itself = {"alias.follow", "predictions.retain"}
    late = "TrackingError: MLflow did not answer within"
    return [one.action for one in events(config) if one.action not in by_itself and not one.why.startswith(late)]


@pytest.fixture(scope="module")
def forgotten(config):
    """Write a request to the model's log as it was answered before the days that predictions are kept."""
    signature = Signature((Column("garden", "string"),), (Column("setosa", "float"),))
    log = PredictionLog(
        LogSettings(enabled=True, uri=config["storage"]["path"]), name="iris-like", signature=signature, writer="old"
    )
    answered_at = datetime.now(UTC) - timedelta(days=RETENTION_DAYS + 1)
    served = RequestRecord("forgotten", answered_at.timestamp(), 1, "champion", "native", 200, "", 1, 9, 0.1, 0.1)
    columns, outputs = {"garden": np.array(["north"], object)}, {"setosa": np.full(1, 0.5)}
    log.take([served._replace(columns=columns, outputs=outputs)])
    log.close()
    with state_of(spec_of(config)) as state:  # which would take rows from before its first deploy for another's
        mark_owner(Store(config["storage"]["path"]), "iris-like", state.owner().id)
    assert requests(config) == ["forgotten"]


@pytest.fixture(scope="module")
def first(config, folder, forgotten):
    return make_version(config, folder, EXAMPLE.read_text())


@pytest.fixture(scope="module")
def second(config, folder, first):
    """Return a version whose changed code answers with the classes in reverse order."""
    source = EXAMPLE.read_text()
    assert AS_IT_IS in source
    return make_version(config, folder, source.replace(AS_IT_IS, REVERSED), compare_answers=False)


def test_the_first_version_is_live_by_the_configuration_alone(config, first):
    """Serve did not run; now the route answers as the bundle does, and the alias is on the version."""
    record = rm.deploy(config)
    assert (record.version, record.role, record.changed, record.warnings) == (1, "champion", True, ())
    assert answered(record, first)
    assert Registry(tracker(spec_of(config))).get("iris-like", "@champion").version == 1
    assert not rm.deploy(config).changed


def test_predictions_are_removed_after_their_days(config, first):
    """By the controller that the first deploy started, which looks after the log at once and then hourly."""
    until(lambda: "predictions.retain" in [event.action for event in events(config)])
    assert "forgotten" not in requests(config)


def test_changed_code_is_live_beside_the_old(config, first, second):
    """First beside, without the route, then with it, then the old one again: each with the code it was trained with."""
    record = rm.deploy(config, promote=False)
    assert (record.version, record.role, record.url) == (2, "warm", None)
    assert desired(config) == {1: "champion", 2: "warm"}
    record = rm.promote(config)
    assert (record.version, record.previous_version) == (2, 1)
    assert answered(record, second)
    record = rm.rollback(config)
    assert (record.version, record.previous_version) == (1, 2)
    assert answered(record, first)
    assert desired(config) == {1: "champion", 2: "warm"}
    made = ["register", "gate.pass"]
    assert actions(config) == [*made, "deploy.start", "deploy", *made, "deploy.beside", "promote", "rollback"]


def test_a_version_that_crashes_in_its_replica_changes_nothing(config, folder, first, second):
    """Its message is in the error; the champion answers all the while; the state is as it was."""
    switch = folder / "crash"
    crash = f'if __import__("os").path.exists({str(switch)!r}):\n            raise RuntimeError("out of petals")'
    source = EXAMPLE.read_text().replace("    def model(self):\n", f"    def model(self):\n        {crash}\n")
    make_version(config, folder, source)
    switch.touch()
    before = desired(config)
    with pytest.raises(DeployError, match="out of petals"):
        rm.deploy(config)
    switch.unlink()
    assert desired(config) == before
    url = f"http://127.0.0.1:{config['serve']['port']}/models/iris-like/predict"
    assert ask(url, ROWS).model_version == "1"
    assert actions(config)[-3:] == ["gate.pass", "deploy.start", "deploy.start.undone"]
    assert Registry(tracker(spec_of(config))).get("iris-like", "@champion").version == 1


def test_a_version_that_can_never_fit_is_refused_at_once(config, second):
    """Five CPUs a replica on a cluster of two: refused before anything is written, naming who holds what."""
    before = actions(config)
    greedy = {**config, "serve": {**config["serve"], "cpus_per_replica": 5.0}}
    with pytest.raises(InsufficientResourcesError, match=r"requests 1 x 5 CPU(.|\n)*iris-like--v1"):
        rm.deploy(greedy, "2", again=True)
    assert actions(config) == before


def test_what_should_be_live_can_be_brought_back(config, first):
    """Serve lost everything, as by down and up: one call brings both versions back, the champion with its route."""
    from ray import serve

    serve.shutdown()
    assert [item.version for item in restore(config)] == [1, 2]
    record = rm.deploy(config, "1")
    assert not record.changed
    assert answered(record, first)


@pytest.mark.soak
def test_an_idle_model_goes_and_its_next_caller_is_answered(config, first):
    """With ``min_replicas: 0`` no replica is left after a while; a request waits for the one that it brings back."""
    idle = {"min_replicas": 0, "scale_to_zero_after_s": 1.0, "downscale_delay_s": 1.0, "timeout_s": WAIT_S}
    rm.deploy({**config, "serve": {**config["serve"], **idle}}, "1")
    api = ServeApi(config["cluster"]["dashboard"])
    until(lambda: not api.get()["applications"]["iris-like--v1"]["deployments"]["front"]["replicas"])
    with Client(f"http://127.0.0.1:{config['serve']['port']}", timeout_s=WAIT_S, attempt_timeout_s=WAIT_S) as client:
        assert client.predict("iris-like", ROWS).model_version == "1"
    rm.deploy(config, "1")


@pytest.mark.soak
def test_a_removed_model_is_gone_and_its_past_is_not(config, second):
    """No route, no desired state; deployed again, a rollback still knows which champion came before.

    One version is removed by its number. At last there is room for one alone, which the next replaces.
    """
    started = ["deploy.start", "deploy"]
    assert remove(config) == [1, 2]
    assert desired(config) == {}
    with pytest.raises(NotFoundError, match="not served"):
        rm.rollback(config)
    base = f"http://127.0.0.1:{config['serve']['port']}"
    assert httpx.get(f"{base}/models/iris-like").status_code == 404
    record = rm.deploy(config, "2", again=True)
    assert answered(record, second)
    assert rm.rollback(config).version == 1
    remove_version(config, 2)
    assert desired(config) == {1: "champion"}
    alone = {**config, "serve": {**config["serve"], "update": "replace", "cpus_per_replica": 1.5}}
    record = rm.deploy(alone, "2", again=True)
    assert answered(record, second)
    assert (record.previous_version, record.away_s > 0.1, desired(config)) == (1, True, {2: "champion"})
    remove(config)
    last = ["remove", *started, "rollback.start", "rollback", "remove.version", *started, "remove"]
    assert actions(config)[-9:] == last
