"""From a configuration to a champion through the public functions: real MLflow, real files, no cluster."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import tiny

import raymlops as rm
from raymlops.bundle.load import load
from raymlops.errors import GateRefusedError, NotFoundError, RefusedError
from raymlops.registry.versions import Registry
from raymlops.state.database import state_url
from raymlops.state.store import State
from raymlops.tracking.client import tracker

pytestmark = pytest.mark.integration

SECRETS = {"MLFLOW_WHO": "whoever-1f7a", "MLFLOW_PASS": "hunter2-9c41"}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A file with credentials by reference."""
    folder = tmp_path_factory.mktemp("lifecycle")
    text = """
project: {name: tiny, tags: {team: tests}}
recipe: {import: "tiny:Tiny"}
train: {epochs: 2, lr: 0.01}
gate: {thresholds: {test/auc: {min: 0.6}}, margin: 0.5}
tracking: {username: {env: MLFLOW_WHO}, password: {env: MLFLOW_PASS}}
"""
    path = folder / "tiny.yaml"
    path.write_text(text + f"storage: {{path: {folder}/store}}\n")
    with pytest.MonkeyPatch.context() as environment:
        for name, value in SECRETS.items():
            environment.setenv(name, value)
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_URI"):
            environment.delenv(name, raising=False)
        yield path


@pytest.fixture(scope="module")
def trained(config):
    return rm.train(config)


@pytest.fixture(scope="module")
def registered(config, trained):
    return rm.register(config, trained.run_id)


def test_registering_a_run_twice_gives_one_version(config, trained, registered):
    """The second call returns the version of the first; the test split was evaluated once."""
    again = rm.register(config, trained.run_id)
    assert (again.version, again.bundle) == (registered.version, registered.bundle)
    assert [ref.version for ref in Registry(tracker(rm.load(config).spec)).list("tiny")] == [1]


def test_the_caller_s_own_settings_give_no_second_version(config, trained, registered, tmp_path):
    """Another waiting time, another storage for new bundles: the bundle holds what the run wrote down, to the byte."""
    spec = rm.load(config).spec
    database = f"sqlite:///{spec.storage.path}/mlflow.db"
    elsewhere = [f"storage.path={tmp_path}", f"tracking.uri={database}"]
    for overrides in (["cluster.wait_s=1.5"], elsewhere):
        again = rm.register(config, trained.run_id, overrides=overrides)
        assert (again.version, again.bundle) == (registered.version, registered.bundle)
    resolved = tracker(spec).read_text(trained.run_id, "config/resolved.yaml")
    assert load(registered.bundle.uri, registered.bundle.digest).config_yaml == resolved


def test_a_lost_bundle_is_written_again_the_same(config, trained, registered):
    """Registering again restores it; with other settings too its digest is the same."""
    shutil.rmtree(registered.bundle.uri)
    again = rm.register(config, trained.run_id, overrides=["cluster.wait_s=1.5", "serve.port=8123"])
    assert (again.version, again.bundle) == (registered.version, registered.bundle)
    load(again.bundle.uri, again.bundle.digest)


def test_weights_are_not_registered_with_other_code(config, tmp_path, monkeypatch):
    """A recipe that changed after the training is refused by name, and taken once it is back."""
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "changing_recipe.py"
    code = "from tiny import Tiny\n\n\nclass Changing(Tiny):\n    pass\n"
    module.write_text(code)
    changing = ["project.name=changing", "recipe.import=changing_recipe:Changing", "train.epochs=1"]
    run = rm.train(config, overrides=changing)
    client = tracker(rm.load(config).spec)

    module.write_text(code + "    scale = 2\n")
    with pytest.raises(RefusedError, match=r"no longer what run \w+ was trained with \(changed: changing_recipe.py\)"):
        rm.register(config, run.run_id, overrides=changing)
    assert Registry(client).list("changing") == []

    module.write_text(code)
    # What a newer raymlops may have written into the configuration is no reason to refuse the run.
    resolved = client.read_text(run.run_id, "config/resolved.yaml") + "later: {key: value}\n"
    client.log_text(run.run_id, resolved, "config/resolved.yaml")
    version = rm.register(config, run.run_id, overrides=changing)
    assert load(version.bundle.uri, version.bundle.digest).config_yaml == resolved
    assert rm.gate(config, str(version.version), overrides=changing)[1].passed


REGISTER = """
import sys
import raymlops as rm
print(rm.register(sys.argv[1], sys.argv[2], overrides=sys.argv[3:]).version)
"""


def test_a_serving_half_that_was_repaired_is_registered(config, tmp_path, monkeypatch):
    """A new process takes the code that changed, since the weights evaluate as they did; both digests are on record."""
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "repaired_recipe.py"
    code = "from tiny import Tiny\n\n\nclass Repaired(Tiny):\n    pass\n"
    module.write_text(code)
    repaired = ["project.name=repaired", "recipe.import=repaired_recipe:Repaired", "train.epochs=1"]
    run = rm.train(config, overrides=repaired)
    client = tracker(rm.load(config).spec)
    trained_sha = client.run(run.run_id).data.tags["raymlops.code_sha"]

    module.write_text(code + "    def decode(self, output):\n        return {'probability': output.sigmoid() / 2}\n")
    os.utime(module, (0, 0))  # not within the second in which the other process starts
    done = subprocess.run(
        [sys.executable, "-c", REGISTER, str(config), run.run_id, *repaired],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(tiny.__file__).parent)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "1\n", done.stderr
    assert "is no longer what run" in done.stderr
    tags = Registry(client).tags("repaired", 1)
    assert tags["raymlops.trained_code_sha"] == trained_sha != tags["raymlops.code_sha"]
    bundle = Registry(client).get("repaired", "1").bundle
    model = load(bundle.uri, bundle.digest)
    assert model.lineage["raymlops.code_sha"] == tags["raymlops.code_sha"]
    assert all(row["probability"] < 0.5 for row in model.predict_rows(model.example))


def test_the_chain_leads_from_a_version_back_to_a_line_of_configuration(config, trained, registered):
    """Version, run, data and configuration name each other by id."""
    spec = rm.load(config).spec
    tags = Registry(tracker(spec)).tags("tiny", registered.version)
    run = tracker(spec).run(registered.run_id)
    assert tags["raymlops.run_id"] == trained.run_id
    assert tags["raymlops.data_fingerprint"] == trained.data.fingerprint == run.data.tags["raymlops.data_fingerprint"]
    assert run.data.params["train.lr"] == "0.01"
    assert rm.load(config).origins["train.lr"].place.endswith("tiny.yaml:4:24")


def test_gate_promotion_and_mlflow_give_the_same_numbers(config, registered, monkeypatch):
    """What passed becomes champion, and MLflow's own loader answers as the bundle does."""
    import mlflow

    with pytest.raises(RefusedError, match="has not passed its gate"):
        rm.promote(config, str(registered.version))
    version, decision = rm.gate(config)
    assert decision.passed
    assert "challenger" in version.aliases
    record = rm.promote(config)
    assert (record.version, record.role, record.url) == (registered.version, "champion", None)

    spec = rm.load(config).spec
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker(spec).uri)
    model = load(registered.bundle.uri, registered.bundle.digest)
    answer = mlflow.pyfunc.load_model("models:/tiny@champion").predict(pd.DataFrame(model.example))
    assert answer["probability"].tolist() == [row["probability"] for row in model.predict_rows(model.example)]
    with State.open(state_url(spec)) as state:
        assert [event.action for event in state.events("tiny")] == ["promote", "gate.pass", "register"]


def test_a_refused_version_changes_nothing(config, registered):
    """A threshold that is not met keeps the version a candidate, with its numbers in the error and on the record."""
    spec = rm.load(config, overrides=["gate.thresholds={test/auc: {min: 0.999}}"]).spec
    with pytest.raises(GateRefusedError, match=r"test/auc: got 0\.\d+, allowed >= 0.999"):
        rm.gate(spec, str(registered.version))
    with State.open(state_url(spec)) as state:
        assert state.events("tiny")[0].action == "gate.refuse"


def test_unknown_things_are_named(config):
    """A run or version that is not there is a NotFoundError that says what is."""
    with pytest.raises(NotFoundError, match="nothing"):
        rm.register(config, "nothing")
    with pytest.raises(NotFoundError, match="'99'"):
        rm.gate(config, "99")


def test_no_credential_is_written_anywhere(config, registered):
    """Neither user name nor password is in any file: databases, artifacts, bundles and configuration."""
    written = [path for path in Path(rm.load(config).spec.storage.path).rglob("*") if path.is_file()]
    assert any(path.name == "mlflow.db" for path in written)
    assert any(path.name == "manifest.json" for path in written)
    found = [
        (path.name, value) for path in written for value in SECRETS.values() if value.encode() in path.read_bytes()
    ]
    assert found == []
    assert json.loads(json.dumps(rm.load(config).spec.to_dict()))["tracking"]["password"] == {
        "env": "MLFLOW_PASS",
        "file": None,
    }
