"""Where a run comes from."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

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
    (tmp_path / "other" / "package").mkdir(parents=True)
    (tmp_path / "other" / "package" / "recipe.py").write_text("x = 1\n")
    (tmp_path / ".env").write_text("PASSWORD=secret-1\n")
    git("add", ".")
    git("commit", "-m", "first")
    return tmp_path


def recorded(repository: Path, *names: str, **changes: Any) -> GitRecord:
    """Return the record of a recipe whose code is these files of its package."""
    package = repository / "package"
    files = {f"package/{name}": (package / name).read_bytes() for name in names or ("recipe.py",)}
    return git_record(package / "recipe.py", files, **changes)


def test_a_clean_tree_has_a_commit_and_no_diff(repository: Path) -> None:
    """The record names the commit and the branch."""
    record = recorded(repository)
    assert len(record.commit) == 40
    assert (record.branch, record.dirty, record.diff) == ("trunk", False, "")


def test_a_dirty_tree_has_the_diff_of_the_recipe_and_no_more(repository: Path) -> None:
    """A secret elsewhere is counted and not copied, although it is tracked; so is one that only has the same name."""
    (repository / "package" / "recipe.py").write_text("x = 2\n")
    (repository / "package" / "more.py").write_text("y = 'new'\n")
    (repository / ".env").write_text("PASSWORD=secret-2\n")
    (repository / "new.py").write_text("PASSWORD=secret-3\n")
    (repository / "other" / "package" / "recipe.py").write_text("PASSWORD=secret-4\n")
    record = recorded(repository, "recipe.py", "more.py")
    assert record.dirty
    assert "-x = 1\n+x = 2" in record.diff
    assert record.diff.endswith(
        "# untracked: package/more.py\n# changed or untracked files that are not the recipe's code: 3"
    )
    assert "secret" not in record.diff
    assert "new" not in record.diff


def test_a_diff_can_be_left_out(repository: Path) -> None:
    """Then its artifact says so."""
    (repository / "package" / "recipe.py").write_text("x = 2\n")
    record = recorded(repository, with_diff=False)
    assert record.dirty
    assert record.diff == "# changed files of the recipe's code, not recorded (tracking.git_diff: false): 1"


def test_a_change_elsewhere_is_counted(repository: Path) -> None:
    """The commit alone is then not what lay there."""
    (repository / ".env").write_text("PASSWORD=secret-2\n")
    record = recorded(repository)
    assert (record.dirty, record.diff) == (True, "# changed or untracked files that are not the recipe's code: 1")


def test_outside_a_repository_the_record_is_empty(tmp_path: Path) -> None:
    """No git is no error."""
    assert git_record(tmp_path / "missing" / "file.py", {}) == GitRecord()


def test_packages_and_hardware_are_named() -> None:
    """What a reader needs to run it again."""
    assert packages()["torch"]
    assert hardware()["memory_bytes"] > 0
