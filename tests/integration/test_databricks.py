"""Databricks' scheme: a real MLflow server behind a token, and Unity Catalog by the protos that MLflow ships."""

from __future__ import annotations

import mlflow
import pytest
from fake_databricks import TOKEN, WORKSPACE_ID, fake_databricks, uc
from mlflow_server import Server
from tiny_bundle import EXAMPLE, tiny_contents

from raymlops.bundle.write import write_bundle
from raymlops.errors import BundleError, NotFoundError, TrackingError
from raymlops.registry.versions import Registry
from raymlops.tracking.client import Tracker

pytestmark = pytest.mark.integration

NAME = "main.ml.tiny"


@pytest.fixture(scope="module")
def mlflow_url(tmp_path_factory, mlflow_database):
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(mlflow_database.read_bytes())
    server = Server(folder)
    server.start()
    yield server.url
    server.stop()


@pytest.fixture
def workspace(mlflow_url, tmp_path, monkeypatch):
    """A workspace that a profile names; nothing of the environment does."""
    with fake_databricks(mlflow_url) as found:
        for name in ("HOST", "TOKEN", "CONFIG_PROFILE"):
            monkeypatch.delenv(f"DATABRICKS_{name}", raising=False)
        profiles = tmp_path / "profiles"
        profiles.write_text(f"[prod]\nhost = {found.url}\ntoken = {TOKEN}\n[stale]\nhost = {found.url}\ntoken = old\n")
        monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(profiles))
        yield found


@pytest.fixture
def tracker(workspace):
    return Tracker("databricks://prod", uc_schema="main.ml")


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "store", tiny_contents())


def test_a_run_is_written_and_read_by_a_profile(tracker):
    """Parameters, metrics, tags and artifacts, by the client's own way to host and token."""
    tracker.check()
    run_id = tracker.start_run("/Shared/tiny", name="tiny", tags={"raymlops.kind": "run"})
    tracker.log_batch(run_id, [("loss", 0.5, 1, 1)], params={"train.lr": "0.1"})
    tracker.log_text(run_id, "text", "a/b.txt")
    tracker.end_run(run_id, "FINISHED")
    assert tracker.read_text(run_id, "a/b.txt") == "text"
    assert (tracker.run(run_id).info.status, tracker.history(run_id, "loss")) == ("FINISHED", [(1, 0.5)])


def test_variables_name_a_workspace_too(workspace, monkeypatch):
    """As on the nodes of a cluster, which have no profiles."""
    monkeypatch.setenv("DATABRICKS_HOST", workspace.url)
    monkeypatch.setenv("DATABRICKS_TOKEN", TOKEN)
    Tracker("databricks").check()


def test_a_token_that_is_no_longer_good_is_told_with_what_to_do(workspace):
    """Not with the settings of another server."""
    with pytest.raises(TrackingError, match="UNAUTHENTICATED") as no:
        Tracker("databricks://stale").check()
    assert "databricks auth login" in no.value.hint


def test_a_version_is_registered_found_and_moved_in_unity_catalog(tracker, workspace, bundle):
    """Three levels, aliases and no stages; another schema's model is not ours."""
    workspace.models["main.dev.tiny"] = uc.RegisteredModel(name="main.dev.tiny")
    registry = Registry(tracker)
    first, second = (tracker.start_run("/Shared/tiny", name=name, tags={}) for name in ("first", "second"))
    tags = {"raymlops.config_sha": "c", "cost-center": "ops"}
    ref = registry.register("tiny", run_id=first, bundle=bundle, tags=tags)
    assert (ref.name, ref.version, ref.run_id, ref.bundle, ref.aliases) == ("tiny", 1, first, bundle, ("candidate",))
    assert registry.tags("tiny", 1).items() >= {"raymlops.config_sha": "c", "cost_center": "ops"}.items()
    assert registry.register("tiny", run_id=first, bundle=bundle).version == 1
    assert registry.register("tiny", run_id=second, bundle=bundle).version == 2

    registry.set_alias("tiny", "champion", 1)
    registry.delete_alias("tiny", "candidate")
    assert [(ref.name, ref.version, ref.aliases) for ref in registry.list()] == [
        ("tiny", 1, ("champion",)),
        ("tiny", 2, ()),
    ]
    assert (registry.get("tiny", "@champion").aliases, registry.get("tiny").version) == (("champion",), 2)
    assert [ref.version for ref in registry.of_run("tiny", first)] == [1]
    assert [alias.alias for alias in workspace.models[NAME].aliases] == ["champion"]
    with pytest.raises(NotFoundError, match="no version '7'"):
        registry.get("tiny", "7")


def test_what_is_asked_of_unity_catalog_is_what_its_protos_say(tracker, workspace, bundle):
    """Each body is parsed by the proto of its path; what it must hold to be accepted is in it."""
    run_id = tracker.start_run("/Shared/tiny", name="tiny", tags={})
    Registry(tracker).register("tiny", run_id=run_id, bundle=bundle, description="a tiny model")
    asked = {type(request): request for request in workspace.asked}
    created = asked[uc.CreateModelVersionRequest]
    assert (created.name, created.run_id, created.run_tracking_server_id) == (NAME, run_id, WORKSPACE_ID)
    assert {tag.key for tag in created.tags} == {"raymlops_run_id", "raymlops_bundle_uri", "raymlops_digest"}
    assert asked[uc.CreateRegisteredModelRequest].description == "a tiny model"
    assert asked[uc.SearchModelVersionsRequest].filter == f"run_id = '{run_id}'"
    assert asked[uc.SetRegisteredModelAliasRequest] == uc.SetRegisteredModelAliasRequest(
        name=NAME, alias="candidate", version="1"
    )
    assert workspace.versions[NAME]["1"].status == uc.READY
    assert {"MLmodel", "requirements.txt"} <= {path.removeprefix("/Models/main/ml/tiny/1/") for path in workspace.files}


def test_a_registration_that_was_cut_off_is_completed(tracker, workspace, bundle):
    """Its version has no last tag; the same run again gives no second one."""
    run_id = tracker.start_run("/Shared/tiny", name="tiny", tags={})
    registry = Registry(tracker)
    registry.register("tiny", run_id=run_id, bundle=bundle)
    version = workspace.versions[NAME]["1"]
    kept = [tag for tag in version.tags if tag.key != "raymlops_complete"]
    del version.tags[:]
    version.tags.extend(kept)
    assert registry.list("tiny") == []
    assert registry.register("tiny", run_id=run_id, bundle=bundle).version == 1
    assert [ref.version for ref in registry.list("tiny")] == [1]


def test_a_version_whose_upload_was_cut_off_is_never_taken(tracker, workspace, bundle):
    """Unity Catalog makes the version first, then its files are sent: the same run again makes another one."""
    run_id = tracker.start_run("/Shared/tiny", name="tiny", tags={})
    registry = Registry(tracker)
    workspace.no_files = True
    with pytest.raises(TrackingError, match="no room"):
        registry.register("tiny", run_id=run_id, bundle=bundle)
    assert workspace.versions[NAME]["1"].status == uc.PENDING_REGISTRATION
    workspace.no_files = False
    assert registry.register("tiny", run_id=run_id, bundle=bundle).version == 2
    assert [ref.version for ref in registry.list("tiny")] == [2]


def test_a_version_loads_by_mlflow_with_its_digest(tracker, bundle, monkeypatch):
    """Unity Catalog looks nothing up by a tag, and the artifact cannot vouch for itself."""
    run_id = tracker.start_run("/Shared/tiny", name="tiny", tags={})
    Registry(tracker).register("tiny", run_id=run_id, bundle=bundle)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    loaded = mlflow.pyfunc.load_model(f"models:/{NAME}@candidate", model_config={"digest": bundle.digest})
    assert list(loaded.predict(EXAMPLE).columns)
    with pytest.raises(BundleError, match="cannot say whether it knows") as no:
        mlflow.pyfunc.load_model(f"models:/{NAME}/1")
    assert "model_config" in no.value.hint
