from pathlib import Path

import pytest

from raymlops.config.paths import local_path


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        ("/data/store", "/data/store"),
        ("file:///data/store", "/data/store"),
        ("file:/data/store", "/data/store"),
        ("file://localhost/data/store", "/data/store"),
        ("file:///data/my%20store", "/data/my store"),
        ("/data/my%20store", "/data/my%20store"),
    ],
)
def test_a_folder_has_several_spellings(text, folder):
    """Only a URI has its percent signs decoded."""
    assert local_path(text) == Path(folder)


def test_home_and_working_directory_are_written_out(monkeypatch):
    """Workers have a working directory of their own, so a relative path is made absolute at once."""
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path("~/store") == local_path("file://~/store") == Path("/home/me/store")
    assert local_path("store") == Path.cwd() / "store"


def test_any_other_uri_is_no_folder():
    """Object stores and servers."""
    assert local_path("s3://bucket/store") is None
    assert local_path("gs://bucket/store?x=y") is None
