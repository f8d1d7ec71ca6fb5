"""Where a run comes from: commit and uncommitted changes, package versions, hardware."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

MAX_DIFF_CHARS = 1_000_000


@dataclass(frozen=True)
class GitRecord:
    """The state of the working tree that a recipe's code was read from. Empty outside a repository."""

    commit: str = ""
    branch: str = ""
    dirty: bool = False
    diff: str = ""
    """``git diff HEAD`` and the names of untracked files."""


def git_record(path: str | Path) -> GitRecord:
    """Return the state of the repository that holds ``path``, or an empty record outside a repository."""
    folder = Path(path)
    folder = folder if folder.is_dir() else folder.parent
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return GitRecord()
    diff = _git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff", "--", ":/")
    untracked = _git(folder, "ls-files", "--others", "--exclude-standard", "--full-name", ":/")
    if untracked:
        diff += "\n# untracked files\n" + "".join(f"# {name}\n" for name in untracked.splitlines())
    if len(diff) > MAX_DIFF_CHARS:
        diff = diff[:MAX_DIFF_CHARS] + "\n# cut here\n"
    return GitRecord(
        commit=commit, branch=_git(folder, "rev-parse", "--abbrev-ref", "HEAD"), dirty=bool(diff), diff=diff
    )


def packages() -> dict[str, str]:
    """Return every installed distribution with its version, by name."""
    # Each access to `metadata` parses the distribution's whole description.
    every = (item.metadata for item in metadata.distributions())
    found = {str(about["Name"]): str(about["Version"]) for about in every if about["Name"]}
    return dict(sorted(found.items(), key=lambda pair: pair[0].lower()))


def hardware() -> dict[str, Any]:
    """Return what this process runs on."""
    import psutil  # type: ignore[import-untyped, unused-ignore]

    gpus: list[str] = []
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count() or 0,
        "memory_bytes": int(psutil.virtual_memory().total),
        "gpus": gpus,
    }


def _git(folder: Path, *arguments: str) -> str:
    git = shutil.which("git")
    if git is None or not folder.is_dir():
        return ""
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments, no shell
            [git, "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip("\n") if done.returncode == 0 else ""


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
