"""Versions in a real MLflow registry, and what MLflow's own users get from them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest
from tiny_bundle import EXAMPLE, contents_of, tiny_contents

from raymlops.bundle.load import load
from raymlops.bundle.pyfunc import save_pyfunc
from raymlops.bundle.write import write_bundle
from raymlops.errors import BundleError, InvalidNameError, InvalidRowsError, NotFoundError, TrackingError
from raymlops.recipes.digits import Digits
from raymlops.registry.lineage import COMPLETE
from raymlops.registry.versions import Registry
from raymlops.tracking.client import Tracker


@pytest.fixture
def registry(tracker):
    return Registry(tracker)


@pytest.fixture
def global_mlflow(tracker, monkeypatch):
    """Point MLflow's own functions to the store, as a user's shell would."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)


def test_a_registered_bundle_is_a_candidate_with_its_lineage(registry, tracker, bundle, run_id):
    """Version 1, where its files are, what vouches for them, and the tags that were given."""
    ref = registry.register("first", run_id=run_id, bundle=bundle, tags={"raymlops.sweep_id": "s1", "team": "ops"})

    assert (ref.version, ref.run_id, ref.bundle, ref.aliases) == (1, run_id, bundle, ("candidate",))
    version = tracker.client.get_model_version("first", "1")
    assert version.tags == {
        "raymlops.sweep_id": "s1",
        "team": "ops",
        "raymlops.bundle_uri": bundle.uri,
        "raymlops.digest": bundle.digest,
        "raymlops.run_id": run_id,
        "raymlops.complete": "true",
    }


def test_registering_a_run_twice_gives_one_version_and_moves_no_alias(registry, tracker, bundle, run_id):
    """Also when another version is the candidate by then."""
    other = tracker.start_run("tiny", name="other", tags={})
    first = registry.register("twice", run_id=run_id, bundle=bundle)
    second = registry.register("twice", run_id=other, bundle=bundle)
    again = registry.register("twice", run_id=run_id, bundle=bundle)

    assert (first.version, second.version, again.version) == (1, 2, 1)
    assert [(ref.version, ref.aliases) for ref in registry.list("twice")] == [(1, ()), (2, ("candidate",))]


def test_a_registration_that_was_cut_off_does_not_count_and_is_completed_by_the_next(registry, tracker, bundle, run_id):
    """A version without its last tag is no version; what the killed one made, twice even, becomes one."""
    tracker.client.create_registered_model("cut")
    for _ in range(2):
        tracker.client.create_model_version("cut", bundle.uri, run_id, tags={"raymlops.digest": bundle.digest,
                                            "raymlops.bundle_uri": bundle.uri, "raymlops.run_id": run_id})  # fmt: skip
    assert registry.list("cut") == []
    with pytest.raises(NotFoundError):
        registry.get("cut", "1")

    ref = registry.register("cut", run_id=run_id, bundle=bundle)

    assert (ref.version, ref.aliases) == (1, ("candidate",))
    assert [version.version for version in tracker.client.search_model_versions("name = 'cut'")] == [1]


def test_a_registration_that_was_killed_before_its_alias_gets_it_with_the_next(tracker, registry, bundle, run_id):
    """The last tag comes after the alias: a version that has the one has the other."""

    class Killed(BaseException):
        pass

    class Falling(Registry):
        def set_alias(self, *_args):
            raise Killed

    with pytest.raises(Killed):
        Falling(tracker).register("fallen", run_id=run_id, bundle=bundle)
    assert registry.list("fallen") == []
    assert registry.register("fallen", run_id=run_id, bundle=bundle).aliases == ("candidate",)


def test_of_two_versions_of_a_run_the_completed_one_stays(registry, tracker, bundle, run_id):
    """Callers know it by its number, which another process gave it; the lower one was never complete."""
    tags = {"raymlops.digest": bundle.digest, "raymlops.bundle_uri": bundle.uri, "raymlops.run_id": run_id}
    tracker.client.create_registered_model("doubled")
    for _ in range(2):
        tracker.client.create_model_version("doubled", bundle.uri, run_id, tags=tags)
    registry.tag("doubled", 2, {COMPLETE: "true"})
    assert registry.register("doubled", run_id=run_id, bundle=bundle).version == 2
    assert [version.version for version in tracker.client.search_model_versions("name = 'doubled'")] == [2]


def test_versions_are_found_by_number_alias_or_as_the_latest(registry, tracker, bundle):
    """And whoever asks for another one is told what there is."""
    runs = [tracker.start_run("tiny", name=str(index), tags={}) for index in range(2)]
    for run in runs:
        registry.register("found", run_id=run, bundle=bundle)
    registry.set_alias("found", "champion", 1)

    found = {which: registry.get("found", which).version for which in ("1", "2", "latest", "@champion", "candidate")}

    assert found == {"1": 1, "2": 2, "latest": 2, "@champion": 1, "candidate": 2}
    assert registry.by_alias("found", "challenger") is None
    with pytest.raises(NotFoundError, match=r"no version '9'\n.*1 @champion, 2 @candidate"):
        registry.get("found", "9")
    with pytest.raises(NotFoundError, match=r"no model 'fond'\n.*found"):
        registry.get("fond")


def test_aliases_move_and_go(registry, bundle, run_id):
    """One version at a time has an alias; taking away what is not there does nothing."""
    registry.register("aliases", run_id=run_id, bundle=bundle)
    registry.set_alias("aliases", "challenger", 1)
    registry.delete_alias("aliases", "candidate")
    registry.delete_alias("aliases", "candidate")

    assert registry.get("aliases").aliases == ("challenger",)


def test_a_long_tag_is_cut_to_what_mlflow_takes(registry, tracker, bundle, run_id):
    """A gate's decision may be long; that is no reason to lose it."""
    registry.register("tags", run_id=run_id, bundle=bundle)
    registry.tag("tags", 1, {"raymlops.gate": "x" * 6000})

    assert len(tracker.client.get_model_version("tags", "1").tags["raymlops.gate"]) == 5000


@pytest.mark.parametrize("name", ["a/b", "A", "", "x--y", "name' OR '1'='1", "../up"])
def test_an_odd_name_is_refused(registry, bundle, run_id, name):
    """Before anything is written."""
    with pytest.raises(InvalidNameError, match="1 to 63 of a-z"):
        registry.register(name, run_id=run_id, bundle=bundle)
    with pytest.raises(NotFoundError):
        registry.get(name)


def test_a_run_that_is_not_there_leaves_no_model_behind(registry, tracker, bundle):
    """Not even an empty one."""
    with pytest.raises(NotFoundError, match="no run 'r'"):
        registry.register("none", run_id="r", bundle=bundle)

    assert tracker.client.search_registered_models("name = 'none'") == []


def test_a_registry_that_does_not_answer_is_a_tracking_error(tmp_path):
    """A file that is no database, for one."""
    (tmp_path / "mlflow.db").write_text("not a database, and long enough to show it" * 100, encoding="utf-8")
    registry = Registry(Tracker(f"sqlite:///{tmp_path}/mlflow.db"))

    with pytest.raises(TrackingError, match="MLflow"):
        registry.list("down")


def test_mlflow_loads_a_version_by_alias_with_the_numbers_of_the_bundle(registry, bundle, run_id, global_mlflow):
    """From a DataFrame with whole numbers, gaps and a missing optional column; no pickle in the artifact."""
    registry.register("served", run_id=run_id, bundle=bundle)
    registry.set_alias("served", "champion", 1)
    expected = load(bundle.uri, bundle.digest).predict_rows(EXAMPLE)

    model = mlflow.pyfunc.load_model("models:/served@champion")

    frame = pd.DataFrame(EXAMPLE, index=[10, 20])
    assert model.predict(frame).to_dict("records") == expected
    assert model.predict(frame).index.tolist() == [10, 20]
    assert model.predict(EXAMPLE).to_dict("records") == expected
    whole = pd.DataFrame({"length": [1, 2]})
    assert model.predict(whole).to_dict("records") == load(bundle.uri, bundle.digest).predict_rows(
        [{"length": 1}, {"length": 2}]
    )
    with pytest.raises(InvalidRowsError, match="row 0, field 'length'"):
        model.predict(pd.DataFrame({"length": ["long"]}))
    assert model.metadata.signature.outputs.to_dict() == [{"type": "double", "name": "probability", "required": True}]


def test_mlflow_takes_tensors_as_nested_lists_or_arrays(registry, tmp_path, run_id, global_mlflow):
    """An image of whole numbers is as good as one of fractions."""
    ref = write_bundle(tmp_path, contents_of(Digits()))
    registry.register("images", run_id=run_id, bundle=ref)
    images = np.arange(128).reshape(2, 8, 8) % 16
    expected = load(ref.uri, ref.digest).predict_rows([{"image": image.tolist()} for image in images])

    model = mlflow.pyfunc.load_model("models:/images/1")

    for given in (list(images), images.tolist(), list(images.astype(float))):
        assert model.predict(pd.DataFrame({"image": given})).to_dict("records") == expected


def artifact(run_id: str, bundle, tmp_path: Path) -> Path:
    path = f"runs:/{run_id}/model/{bundle.digest[:16]}"
    return Path(mlflow.artifacts.download_artifacts(path, dst_path=str(tmp_path / "artifact")))


def tamper(folder: Path) -> str:
    """Change the code and the manifest to match, and return the digest that would vouch for it."""
    code = folder / "code" / "tiny.py"
    code.write_text(code.read_text(encoding="utf-8") + "\nEVIL = True\n", encoding="utf-8")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    data = code.read_bytes()
    manifest["files"]["code/tiny.py"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    text = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def test_mlflow_refuses_an_artifact_that_was_changed_with_its_manifest(
    registry, bundle, run_id, tmp_path, global_mlflow
):
    """The registry knows no such digest, and neither argument nor artifact can vouch for it in its place."""
    registry.register("tampered", run_id=run_id, bundle=bundle)
    folder = artifact(run_id, bundle, tmp_path)
    mlflow.pyfunc.load_model(str(folder))
    evil = tamper(folder / "bundle")

    with pytest.raises(BundleError, match=f"expected a bundle that some model version .* got {evil}"):
        mlflow.pyfunc.load_model(str(folder))
    with pytest.raises(BundleError, match=f"expected SHA-256 {bundle.digest}"):
        mlflow.pyfunc.load_model(str(folder), model_config={"digest": bundle.digest})
    description = (folder / "MLmodel").read_text(encoding="utf-8")
    assert "digest: ''" in description
    (folder / "MLmodel").write_text(description.replace("digest: ''", f"digest: {evil}"), encoding="utf-8")
    with pytest.raises(BundleError, match="an artifact cannot vouch for itself"):
        mlflow.pyfunc.load_model(str(folder))


def test_mlflow_loads_a_folder_that_no_registry_knows_by_a_given_digest(tmp_path, global_mlflow):
    """The caller vouches where no registry does."""
    bundle = write_bundle(tmp_path, tiny_contents(seed=77))
    folder = tmp_path / "model"
    save_pyfunc(bundle, folder)

    with pytest.raises(BundleError, match="the registry is another one"):
        mlflow.pyfunc.load_model(str(folder))
    model = mlflow.pyfunc.load_model(str(folder), model_config={"digest": bundle.digest})
    assert len(model.predict(pd.DataFrame(EXAMPLE))) == 2


def test_a_run_is_one_version_whatever_bundle_comes_with_it(registry, bundle, run_id, tmp_path):
    """The version keeps the bundle that it was registered with."""
    other = write_bundle(tmp_path, tiny_contents(evaluation={"metrics": {"test/auc": 0.6}}))
    first = registry.register("one", run_id=run_id, bundle=bundle)
    again = registry.register("one", run_id=run_id, bundle=other)

    assert [first] == [again] == registry.of_run("one", run_id)
    assert registry.of_run("one", "another") == []


def test_a_duplicate_that_another_process_removed_is_no_error(registry, tracker, bundle, run_id):
    """Two processes that register one run at once both remove what is too many."""
    registry.register("race", run_id=run_id, bundle=bundle)
    extra = tracker.client.create_model_version("race", bundle.uri, run_id)
    registry._delete(extra)
    registry._delete(extra)

    assert [ref.version for ref in registry.list("race")] == [1]


class Counting:
    """MLflow's client, and each request to it."""

    def __init__(self, client):
        self.client, self.asked = client, []

    def __getattr__(self, name):
        def ask(*args, **kwargs):
            self.asked.append((name, *args[:1]))
            return getattr(self.client, name)(*args, **kwargs)

        return ask


@pytest.fixture
def long_history(registry, tracker, bundle):
    """Return a registry with 250 versions of a model, and what it asked MLflow."""
    run = tracker.start_run("tiny", name="tiny", tags={})
    registry.register("long", run_id=run, bundle=bundle)
    tags = tracker.client.get_model_version("long", "1").tags
    for _ in range(249):
        tracker.client.create_model_version("long", bundle.uri, "0" * 32, tags=tags)
    counting = Counting(tracker.client)
    return Registry(SimpleNamespace(client=counting, uc_schema=None)), run, counting.asked


def test_one_version_of_many_is_asked_for_alone(long_history):
    """By number, by alias or by run; for the latest and for a hint one page of three is read."""
    registry, run, asked = long_history
    assert (registry.get("long", "@candidate").version, registry.by_alias("long", "candidate").version) == (1, 1)
    assert registry.get("long", "7").version == 7
    assert asked == [("get_model_version_by_alias", "long")] * 2 + [("get_model_version", "long")]
    asked.clear()
    assert [ref.version for ref in registry.of_run("long", run)] == [1]
    assert asked == [("search_model_versions", f"run_id = '{run}'"), ("get_registered_model", "long")]
    asked.clear()
    assert registry.get("long").version == 250
    for unknown in ("champion", "@champion", "v7", "007", "9" * 20, "a b", ""):
        with pytest.raises(NotFoundError, match=r"newest versions: 231, .*, 250\."):
            registry.get("long", unknown)
    assert asked.count(("search_model_versions", "name = 'long'")) == 8
    assert len(registry.list("long")) == 250
