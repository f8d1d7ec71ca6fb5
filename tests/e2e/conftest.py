"""End-to-end tests run ``raymlops`` as a user does: as a subprocess, in a folder and a home of its own."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
RAYMLOPS = Path(sys.executable).with_name("raymlops")


class User:
    """A user with a home, a working directory and a shell environment."""

    def __init__(self, folder: Path):
        self.cwd = folder
        self.env = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("RAY", "MLFLOW"))},
            "HOME": str(folder / "home"),
            "PATH": f"{RAYMLOPS.parent}:{os.environ['PATH']}",
        }
        (folder / "home").mkdir()

    def run(self, *arguments, code=0, timeout_s=420, **kwargs):
        """Run a command to its end and check its exit code."""
        result = subprocess.run(
            [str(item) for item in arguments],
            cwd=self.cwd,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            **kwargs,
        )
        assert result.returncode == code, (
            f"{arguments} exited {result.returncode}\n{result.stdout}\n{result.stderr[-8000:]}"
        )
        return result

    def raymlops(self, *arguments, **kwargs):
        """Run ``raymlops`` with these arguments."""
        return self.run(RAYMLOPS, *arguments, **kwargs)

    def start(self, *arguments):
        """Start ``raymlops`` in the background, in a process group of its own."""
        return subprocess.Popen(
            [str(RAYMLOPS), *map(str, arguments)],
            cwd=self.cwd,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def processes(self):
        """Return every living process that carries this user's home: all that a command left behind."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HOME") == self.env["HOME"] and process.status() != psutil.STATUS_ZOMBIE:
                    found.append((process.pid, " ".join(process.cmdline())[:160]))
            except psutil.Error:
                continue
        return found


@pytest.fixture
def user(tmp_path):
    """A user in an empty folder; whatever a failed test left of theirs is ended by pid."""
    someone = User(tmp_path)
    yield someone
    for pid, _ in someone.processes():
        try:
            psutil.Process(pid).kill()
        except psutil.Error:
            continue


@pytest.fixture
def repository():
    """The root of the checkout."""
    return ROOT
