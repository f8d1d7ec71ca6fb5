"""The release, as ``pyproject.toml`` reads it too, and what tells its code from that of any other checkout."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

__version__ = "0.2.0"


@cache
def code_version() -> str:
    """Return the release with a digest of this package's sources, as they were at the first call in this process.

    Between two releases what is stored changes too, and nobody has to remember to count that.
    """
    package, digest = Path(__file__).parent, hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package).as_posix()}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return f"{__version__}+{digest.hexdigest()[:8]}"
