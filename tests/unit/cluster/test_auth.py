from __future__ import annotations

import os
import stat

import pytest

from raymlops.cluster import auth
from raymlops.errors import StorageError


def _mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_readable_by_its_owner_only(tmp_path):
    """File 0600 in a folder 0700, with 256 bits in hexadecimal."""
    path = auth.ensure_token(tmp_path / "auth")
    assert (_mode(path), _mode(path.parent)) == (0o600, 0o700)
    assert len(path.read_text()) == 64


def test_a_token_is_kept_so_that_open_shells_keep_working(tmp_path):
    """The environment that an earlier start printed stays right."""
    before = auth.ensure_token(tmp_path / "auth").read_text()
    assert auth.ensure_token(tmp_path / "auth").read_text() == before


def test_a_token_that_others_could_read_is_replaced(tmp_path):
    """It may be known, so tightening its mode would not be enough."""
    path = auth.ensure_token(tmp_path / "auth")
    before = path.read_text()
    path.chmod(0o644)
    assert auth.ensure_token(tmp_path / "auth").read_text() != before
    assert _mode(path) == 0o600


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    """A file stands where the folder should be."""
    (tmp_path / "auth").write_text("")
    with pytest.raises(StorageError, match="auth/token"):
        auth.ensure_token(tmp_path / "auth")


def test_the_environment_is_put_back(monkeypatch):
    """Set, taken away and absent variables all return to what they were."""
    monkeypatch.setenv("RAY_ADDRESS", "there:1")
    monkeypatch.delenv(auth.MODE, raising=False)
    with auth.in_process({auth.MODE: "token", "RAY_ADDRESS": None}):
        assert os.environ[auth.MODE] == "token"
        assert "RAY_ADDRESS" not in os.environ
    assert auth.MODE not in os.environ
    assert os.environ["RAY_ADDRESS"] == "there:1"


def test_the_environment_to_export_has_paths_and_no_token(tmp_path):
    """What is printed can be pasted into a chat."""
    path = auth.ensure_token(tmp_path / "auth")
    assert path.read_text() not in str(auth.environment(path))
    assert auth.headers(path) == {"Authorization": f"Bearer {path.read_text()}"}
    assert auth.headers(tmp_path / "missing") == {}
