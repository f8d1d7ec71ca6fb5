"""Read what labelled traffic of a bundle's version is compared with: its test rows, as plain data."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from raymlops.bundle import verify as names
from raymlops.errors import NotFoundError

if TYPE_CHECKING:
    from raymlops.storage.filesystem import Location


def quality_of(uri: Location, digest: str) -> dict[str, Any]:
    """Return the reference for quality of a bundle, as ``monitor.skill.reference`` reads it.

    Reads the manifest and one file, and runs none of the bundle's code.

    Raises:
        NotFoundError: it has none; the hint says how to make one.
        BundleError: the bundle is not what the digest vouches for.
        StorageError: the storage cannot be read.
    """
    files = names.BundleFiles(uri, digest)
    if names.QUALITY not in files.manifest:
        raise NotFoundError(
            f"{os.fspath(uri)}/{names.QUALITY}: the bundle keeps no test rows that labelled answers can be compared "
            "with: its answers have no loss, its test split has no labels, or an earlier raymlops wrote it",
            hint="Train and register a version with this release of raymlops; registering says why there is none.",
        )
    found: dict[str, Any] = files.json(names.QUALITY)
    return found
