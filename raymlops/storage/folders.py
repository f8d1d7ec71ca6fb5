"""What lies in a folder of a ``pyarrow.fs`` filesystem, where pyarrow's own answer is not the whole one.

Knows no URI and no errors of ours.
"""

from __future__ import annotations

from typing import Any


def entries_of(filesystem: Any, base: str, *, recursive: bool) -> dict[str, Any]:
    """Return pyarrow's ``FileInfo`` of all that lies in a folder, by its path there, sorted; {} for no folder."""
    from pyarrow import fs

    # Google's client (pyarrow 25) names a folder only where an object marks it, other than S3's and Azure's.
    below = str(filesystem.type_name) == "gcs" and not recursive
    selector = fs.FileSelector(base, allow_not_found=True, recursive=recursive or below)
    try:
        found = filesystem.get_file_info(selector)
    except FileNotFoundError:  # a folder was made after pyarrow found it missing, before it asked whether it exists
        found = filesystem.get_file_info(selector)
    named = {info.path.removeprefix(base).lstrip("/"): info for info in found}
    return dict(sorted((top_level(named, base) if below else named).items(), key=lambda item: item[0]))


def top_level(named: dict[str, Any], base: str) -> dict[str, Any]:
    """Return the ``FileInfo`` of what lies directly in a folder, of all that lies below it, by its path there."""
    from pyarrow import fs

    found = {}
    for path, info in named.items():
        name, deep, _ = path.partition("/")
        found[name] = fs.FileInfo(f"{base}/{name}", fs.FileType.Directory) if deep else info
    return found
