import pytest

from raymlops.cluster.kubernetes.published import publish
from raymlops.errors import RefusedError


def test_another_projects_folder_is_not_overwritten(tmp_path):
    """Each of its files would be as rendered, and gone; --force replaces them, also of a record without a project."""
    publish(tmp_path, {"a.yaml": "one"}, of="my_model")
    with pytest.raises(RefusedError, match=r"has the manifests of the project my_model, and these are of my-model"):
        publish(tmp_path, {"a.yaml": "two"}, of="my-model")
    assert (tmp_path / "a.yaml").read_text() == "one"
    assert publish(tmp_path, {"a.yaml": "two"}, of="my-model", force=True) == ["a.yaml"]
    record = tmp_path / ".rendered.json"
    record.write_text(record.read_text().replace('"project": "my-model",', ""))
    assert publish(tmp_path, {"a.yaml": "three"}, of="my_model") == ["a.yaml"]
