"""A process takes over what another one could import, as far as it is there."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from raymlops.cluster.import_paths import own_paths, take_over


def test_paths_are_absolute_and_come_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "here"])
    paths = own_paths()
    assert json.loads(paths["sys_path"]) == [str(tmp_path), str(tmp_path / "here")]
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.chdir("/")
    for _ in range(2):
        take_over(paths)
    assert (sys.path, Path.cwd()) == ([str(tmp_path)], tmp_path)  # ``here`` does not exist


def test_a_folder_that_is_not_on_this_machine_is_left_out(monkeypatch):
    before = os.getcwd()  # noqa: PTH109 - compared as text
    monkeypatch.setattr(sys, "path", list(sys.path))
    take_over({"sys_path": '["/no/such/folder"]', "cwd": "/no/such/folder"})
    assert ("/no/such/folder" in sys.path, str(Path.cwd())) == (False, before)
