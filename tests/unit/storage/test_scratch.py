"""Folders of this machine: those of dead processes are removed, those of living ones are not."""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING, Any

from raymlops.storage.scratch import scratch

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_scratch_of_the_dead_is_removed_and_of_the_living_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever holds the lock lives."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("dead", "alive"):
        (tmp_path / f"raymlops-scratch-{name}").mkdir()
        (tmp_path / f"raymlops-scratch-{name}.lock").touch()
    with (tmp_path / "raymlops-scratch-alive.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with scratch() as folder:
            (folder / "file").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raymlops-scratch-alive", "raymlops-scratch-alive.lock"]


def test_a_folder_in_the_making_is_not_taken_for_a_dead_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process cleans up just before this one locks: the lock is still there, and locked, afterwards."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    flock = fcntl.flock

    def late(handle: Any, operation: int) -> None:
        if operation == fcntl.LOCK_EX:
            monkeypatch.setattr("fcntl.flock", flock)
            with scratch():
                pass
        flock(handle, operation)

    monkeypatch.setattr("fcntl.flock", late)
    with scratch() as folder:
        with scratch():
            assert folder.exists()
        assert folder.with_suffix(".lock").exists()
    assert list(tmp_path.iterdir()) == []
