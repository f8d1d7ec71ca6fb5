"""The folders of files that come with raymlops beside its code: ``configs`` and ``deploy``."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from raymlops.errors import NotFoundError


def shipped(folder: str) -> Path:
    """Return where a folder is: in the checkout, or in the installed package.

    Raises:
        NotFoundError: it is in neither.
    """
    package = Path(str(files("raymlops")))
    for found in (package.parent / folder, package / folder):
        if found.is_dir():
            return found
    raise NotFoundError(f"the folder {folder} that comes with raymlops is missing", hint="Install raymlops again.")
