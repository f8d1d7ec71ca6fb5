"""Read the references of a bundle: its layouts, with the profiles of what it was trained on and of what it answered."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from raymlops.bundle import verify as names
from raymlops.errors import BundleError, NotFoundError
from raymlops.profiles.file import read_references

if TYPE_CHECKING:
    from raymlops.profiles.reference import Reference
    from raymlops.storage.filesystem import Location


def references_of(uri: Location, digest: str) -> dict[str, Reference]:
    """Return a bundle's references: ``features`` and ``predictions``, each where its split is a table.

    Reads the manifest and one file, and runs none of the bundle's code.

    Raises:
        NotFoundError: release 0.1 wrote it, whose profiles cannot be compared with; the hint says how to make new ones.
        BundleError: the bundle is not what the digest vouches for, or a newer raymlops wrote its profiles.
        StorageError: the storage cannot be read.
    """
    files = names.BundleFiles(uri, digest)
    where = f"{os.fspath(uri)}/{names.PROFILES}"
    if names.PROFILES not in files.manifest:
        raise NotFoundError(
            f"{where}: the bundle has no profiles that traffic can be compared with: an earlier raymlops wrote it",
            hint="Register its run again, `raymlops models register RUN_ID`: that makes a version with profiles.",
        )
    try:
        return read_references(files.read(names.PROFILES))
    except ValueError as error:
        raise BundleError(f"{where}: {error}", hint="If a newer raymlops wrote it, upgrade raymlops here.") from error
