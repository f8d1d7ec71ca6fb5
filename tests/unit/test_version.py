"""What tells the code of two checkouts apart."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import raymlops
from raymlops.version import __version__, code_version

ASK = "from raymlops.version import code_version; print(code_version())"


def asked(folder):
    """Return the version of the code of a folder."""
    found = subprocess.run([sys.executable, "-c", ASK], cwd=folder, capture_output=True, text=True, check=True)
    return found.stdout.strip()


def test_a_copy_has_the_version_of_its_original_until_any_source_changes(tmp_path):
    """Wherever it is; what else lies beside the sources does not count."""
    package = tmp_path / "raymlops"
    shutil.copytree(Path(raymlops.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "configs"))
    (package / "notes.txt").write_text("no code")
    assert asked(tmp_path) == code_version()
    assert code_version().startswith(f"{__version__}+")
    with (package / "config" / "serve.py").open("a") as file:
        file.write("\n")
    assert asked(tmp_path) != code_version()
