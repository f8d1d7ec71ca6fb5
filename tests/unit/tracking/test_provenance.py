"""Where a run comes from."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from raymlops.tracking.provenance import GitRecord, git_record, hardware, packages

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True)

    git("init", "-b", "trunk")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "recipe.py").write_text("x = 1\n")
    git("add", ".")
    git("commit", "-m", "first")
    return tmp_path


def test_a_clean_tree_has_a_commit_and_no_diff(repository: Path) -> None:
    """The record names the commit and the branch."""
    record = git_record(repository / "package" / "recipe.py")
    assert len(record.commit) == 40
    assert (record.branch, record.dirty, record.diff) == ("trunk", False, "")


def test_a_dirty_tree_has_its_diff_and_untracked_names(repository: Path) -> None:
    """Changes anywhere in the repository count, also when asked from a folder below."""
    (repository / "package" / "recipe.py").write_text("x = 2\n")
    (repository / "new.py").write_text("y = 1\n")
    record = git_record(repository / "package" / "recipe.py")
    assert record.dirty
    assert "-x = 1\n+x = 2" in record.diff
    assert "# new.py" in record.diff


def test_outside_a_repository_the_record_is_empty(tmp_path: Path) -> None:
    """No git is no error."""
    assert git_record(tmp_path / "missing" / "file.py") == GitRecord()


def test_packages_and_hardware_are_named() -> None:
    """What a reader needs to run it again."""
    assert packages()["torch"]
    assert hardware()["memory_bytes"] > 0
