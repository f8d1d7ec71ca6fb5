"""Artifacts in a backup."""

import pytest

from raymlops.lifecycle.backup.artifacts import restore_models, save_artifacts
from raymlops.records import BundleRef

URI = "mlflow-artifacts:/1/run/artifacts"


def test_what_only_mlflow_s_server_can_read_is_said_and_no_folder_here(tmp_path, monkeypatch):
    """A path with a colon would be one of the working directory."""
    monkeypatch.chdir(tmp_path)
    (lack,) = save_artifacts({"run": URI}, (), tmp_path)
    assert lack == f"the artifacts of run run, which MLflow's server alone can read: {URI}"
    digest = "d" * 64
    assert restore_models({f"{URI}/model": digest}, {digest: BundleRef("/nowhere", digest)}) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["{}", "file://{}", "file:{}"])
def test_links_are_named_and_not_followed(tmp_path, form):
    """Also one to a folder that it is in, which has no end."""
    artifacts = tmp_path / "artifacts"
    (artifacts / "config").mkdir(parents=True)
    (artifacts / "config" / "resolved.yaml").write_text("lr: 1")
    (artifacts / "config" / "again").symlink_to(artifacts)
    (artifacts / "passwd").symlink_to("/etc/passwd")
    lacks = save_artifacts({"run": form.format(artifacts)}, (), tmp_path / "backup")
    assert [lack.partition(": ")[2].partition(" is a link")[0] for lack in lacks] == ["passwd", "config/again"]
    kept = [path for path in (tmp_path / "backup").rglob("*") if path.is_file()]
    assert [path.read_text() for path in kept] == ["lr: 1"]
