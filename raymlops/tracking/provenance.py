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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_DIFF_CHARS = 1_000_000


@dataclass(frozen=True)
class GitRecord:
    """The state of the working tree that a recipe's code was read from. Empty outside a repository."""

    commit: str = ""
    branch: str = ""
    dirty: bool = False
    """Whether anything in the repository is changed or untracked."""
    diff: str = ""
    """``git diff HEAD`` of the recipe's code, and how much else is changed; empty in a clean repository."""


def git_record(path: str | Path, files: Mapping[str, bytes], *, with_diff: bool = True) -> GitRecord:
    """Return the state of the repository that holds ``path``, or an empty record outside a repository.

    ``files`` are those whose changes are recorded, by the end of their path: others of the repository may hold
    anything, such as credentials. Of untracked files only names are recorded.
    """
    folder = Path(path)
    folder = folder if folder.is_dir() else folder.parent
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return GitRecord()
    root = Path(_git(folder, "rev-parse", "--show-toplevel"))
    changed = _names(folder, "diff", "HEAD", "--name-only", "--no-renames", "-z", "--", ":/")
    untracked = _names(folder, "ls-files", "--others", "--exclude-standard", "--full-name", "-z", "--", ":/")
    mine = [name for name in changed if _is_among(root, name, files)]
    lines = [f"# untracked: {name}" for name in untracked if _is_among(root, name, files)]
    if others := len(changed) + len(untracked) - len(mine) - len(lines):
        lines.append(f"# changed or untracked files that are not the recipe's code: {others}")
    diff = ""
    if with_diff and mine:
        paths = (f":(top,literal){name}" for name in mine)
        diff = _git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff", "--no-renames", "--", *paths)
        if len(diff) > MAX_DIFF_CHARS:
            diff = diff[:MAX_DIFF_CHARS] + "\n# cut here"
    elif mine:
        lines.insert(0, f"# changed files of the recipe's code, not recorded (tracking.git_diff: false): {len(mine)}")
    return GitRecord(
        commit=commit,
        branch=_git(folder, "rev-parse", "--abbrev-ref", "HEAD"),
        dirty=bool(changed or untracked),
        diff="\n".join([*([diff] if diff else []), *lines]),
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


def _names(folder: Path, *arguments: str) -> list[str]:
    return [name for name in _git(folder, *arguments).split("\0") if name]


def _is_among(root: Path, name: str, files: Mapping[str, bytes]) -> bool:
    """Return whether a file of the repository is one of these: by the end of its path, and by its content."""
    ends = [end for end in files if name == end or name.endswith(f"/{end}")]
    try:
        return bool(ends) and (root / name).read_bytes() in {files[end] for end in ends}
    except OSError:  # removed
        return False


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
