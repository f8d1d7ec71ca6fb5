"""Run the unit tests with the newest releases that install together, whatever pyproject.toml bounds and the lock holds.

    make newest

Prints the versions that the lock does not have, then what breaks. Warnings of other libraries fail nothing; ours do.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
VENV = ROOT / ".venv-newest"
WARNINGS = ("-W", "default", "-W", "error:::raymlops")


def required() -> list[str]:
    """Return the names of all requirements, their extras included, without bounds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = sum(project["optional-dependencies"].values(), project["dependencies"])
    names = {re.match(r"[\w.-]+(\[[\w,]+\])?", line)[0] for line in lines}
    return sorted(name for name in names if not name.startswith("raymlops"))


def pinned(lock: str) -> set[str]:
    """Return the NAME==VERSION of lines, names as package indexes write them."""
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", lock, flags=re.MULTILINE)
    return {f"{re.sub(r'[-_.]+', '-', name).lower()}=={version.partition('+')[0]}" for name, version in found}


def main() -> None:
    """Make the environment, print how it differs from the lock, run the tests; exit as pytest does."""
    python = str(VENV / "bin/python")
    subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", *required()], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "-e", "."], cwd=ROOT, check=True)
    listing = subprocess.run([python, "-m", "pip", "freeze"], check=True, capture_output=True, text=True).stdout
    locked = "\n".join(path.read_text() for path in sorted((ROOT / "deploy/image").glob("*.txt")))
    print("not in the lock:", *sorted(pinned(listing) - pinned(locked)), sep="\n  ", flush=True)
    command = [python, "-m", "pytest", "tests/unit", "tests/ports", "-q", "-n", "3", "-m", "not soak", *WARNINGS]
    os.chdir(ROOT)
    os.execv(python, [*command, *sys.argv[1:]])


if __name__ == "__main__":
    main()
