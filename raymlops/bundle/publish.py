"""Give a folder its name as a bundle: a rename on a disk, elsewhere an upload whose manifest comes last.

A process killed at any point leaves nothing under the name of a bundle. Several may publish the same one at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from raymlops.bundle import verify as names
from raymlops.config.paths import local_path
from raymlops.errors import BundleError
from raymlops.records import BundleRef
from raymlops.storage import filesystem
from raymlops.storage.filesystem import FOLDER
from raymlops.storage.manifest import MANIFEST
from raymlops.storage.scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.storage.filesystem import Location


def publish(folder: Path, uri: str, digest: str, *, order: Sequence[str]) -> None:
    """Make a folder on the same disk, or for another filesystem any folder, the bundle at ``uri``.

    ``order`` names its files as they are uploaded, without the manifest.

    Raises:
        BundleError: another process wrote a damaged one meanwhile.
        OSError: it cannot be renamed.
        StorageError: it cannot be uploaded.
    """
    if local_path(uri) is None:
        for name in (*order, MANIFEST):
            filesystem.upload(folder / name, filesystem.join(uri, name))
        return
    try:
        filesystem.publish_folder(folder, Path(uri))
    except OSError:
        if not Path(uri).exists():
            raise
        names.verify(uri, digest)  # another process wrote the same bundle meanwhile


def is_there(uri: str) -> bool:
    """Return whether there is a bundle at ``uri``, whole or damaged."""
    mark = uri if local_path(uri) is not None else filesystem.join(uri, MANIFEST)
    return bool(filesystem.info(mark).type.name != "NotFound")


def check_copy(there: BundleRef, source_uri: str, *, every_byte: bool = False) -> None:
    """Make sure that a copy of a bundle is whole: by its manifest and its sizes, or by ``every_byte``.

    Raises:
        BundleError: it is not; the hint says how it is written again.
        StorageError: it cannot be read.
    """
    try:
        if every_byte:
            names.verify(there.uri, there.digest)
        else:
            names.check_sizes(there.uri, names.read_manifest(there.uri, there.digest))
    except BundleError as error:
        raise BundleError(
            f"the copy that is there is damaged: {error.message}",
            hint=f"Move {there.uri} away: it is written again from {source_uri}.",
        ) from error


def copy_bundle(ref: BundleRef, root_uri: Location, *, private: bool = False) -> tuple[BundleRef, bool]:
    """Copy a bundle to ``<root>/bundles/<digest>/``; return where it is, and whether it was not there before.

    What is read is checked against the digest, and so is a bundle that is there: by its manifest and its sizes, since
    it was checked when it was written. ``private``, local files are their owner's alone.

    Raises:
        BundleError: the bundle, or the one that is there, is damaged or missing.
        StorageError: a storage cannot be read or written.
    """
    bundles = filesystem.join(root_uri, FOLDER)
    target = BundleRef(uri=filesystem.join(bundles, ref.digest), digest=ref.digest)
    if is_there(target.uri):
        check_copy(target, ref.uri)
        return target, False
    manifest = names.verify(ref.uri, ref.digest)
    parent = local_path(bundles)
    with filesystem.errors(bundles), scratch() if parent is None else filesystem.temporary_folder(parent) as folder:
        for name in (*manifest, MANIFEST):
            path = folder / name
            filesystem.download(filesystem.join(ref.uri, name), path)
            if private:
                path.chmod(0o600)
        if private:
            for inner in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
                inner.chmod(0o700)
        names.verify(folder, ref.digest)
        publish(folder, target.uri, ref.digest, order=list(manifest))
    return target, True
