"""Check that the files of a bundle are the ones its digest vouches for.

Owns the names of a bundle's files. The digest always comes from the caller, who has it from the registry, the desired
state or Serve's arguments; nothing in the bundle can vouch for it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from raymlops.config.paths import local_path
from raymlops.errors import BundleError, NotFoundError, StorageError
from raymlops.storage import filesystem
from raymlops.storage.manifest import BUNDLE, MANIFEST, Digests, mismatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.storage.filesystem import Location

WEIGHTS = "weights.safetensors"
ROWS = "rows.safetensors"
RECIPE = "recipe.json"
STATE = "state.json"
SIGNATURE = "signature.json"
EXAMPLE = "example.json"
CONFIG = "config.yaml"
PROFILE = "profile.json"
"""What the references are of, for people to read. Release 0.1 kept its profiles here."""
PROFILES = "profiles.parquet"
"""The references of inputs and answers. Bundles of release 0.1 lack it, which ignores it."""
EVALUATION = "evaluation.json"
LINEAGE = "lineage.json"
LOSS = "loss.json"
"""How answers are compared with labels. Bundles of earlier releases lack it, and earlier releases ignore it."""
QUALITY = "quality.json"
"""The test rows that labelled answers are compared with. Bundles of earlier releases lack it, which ignore it."""
CODE = "code"
REQUIRED = frozenset(
    {WEIGHTS, ROWS, RECIPE, STATE, SIGNATURE, EXAMPLE, CONFIG, PROFILE, EVALUATION, LINEAGE},
)
DEFAULT_CACHE = "~/.raymlops/cache/bundles"


_MAX_MANIFEST_BYTES = 16 << 20


def verify(uri: Location, digest: str) -> Digests:
    """Check every file of a bundle against the digest that the caller trusts, and return its manifest.

    Raises:
        BundleError: naming the file, what was expected and what was got: no bundle there, another digest, a newer
            format, a file that is missing, extra, a link, or of another size or content.
        StorageError: the storage cannot be read.
    """
    manifest = read_manifest(uri, digest)
    check_sizes(uri, manifest)
    for name, entry in sorted(manifest.items()):
        if (problem := mismatch(_open(uri, name), entry)) is not None:
            raise _damage(uri, name, *problem)
    return manifest


def fetch(uri: Location, digest: str, *, cache: str | os.PathLike[str] = DEFAULT_CACHE) -> Path:
    """Return a local folder that holds the verified bundle; a remote one is kept in ``cache`` under its digest.

    The cached copy is verified at each call, and fetched again when it was damaged. Where it is whole, the storage is
    not asked, so that a bundle that was fetched beforehand loads while its storage is away.

    Raises:
        BundleError: as ``verify``.
        StorageError: the storage cannot be read, or the cache not written.
    """
    if (local := local_path(uri)) is not None:
        verify(uri, digest)
        return local
    folder = Path(cache).expanduser() / _checked(digest)
    if folder.exists():
        try:
            verify(folder, digest)
        except BundleError:
            shutil.rmtree(folder)
        else:
            return folder
    data = _manifest_bytes(uri, digest)
    with filesystem.errors(folder.parent), filesystem.temporary_folder(folder.parent) as temporary:
        manifest = parse_manifest(data, where=os.fspath(uri))
        check_sizes(uri, manifest)  # before the first byte: a larger file could fill the disk
        for name in manifest:
            filesystem.download(filesystem.join(uri, name), temporary / name)
        (temporary / MANIFEST).write_bytes(data)
        verify(temporary, digest)
        try:
            temporary.rename(folder)
        except OSError:
            verify(folder, digest)  # another process fetched the same bundle meanwhile
    return folder


def parse_manifest(data: bytes, *, where: str) -> Digests:
    """Read a manifest whose digest has been checked.

    Raises:
        BundleError: it is damaged, names a file outside the bundle, or its format is newer than this raymlops.
    """
    try:
        version, files = BUNDLE.decode(data)
    except ValueError as error:
        raise BundleError(
            f"{where}/{MANIFEST}: expected JSON with a format_version and files with sha256 and size, "
            f"got {data[:60]!r} ({error})"
        ) from error
    if not 1 <= version <= BUNDLE.version:
        raise BundleError(
            f"{where}/{MANIFEST}: format_version: expected 1 to {BUNDLE.version}, got {version}",
            hint="A newer raymlops wrote this bundle: upgrade raymlops here.",
        )
    for name in files:
        if not _is_safe(name):
            raise BundleError(f"{where}/{MANIFEST}: expected names of files inside the bundle, got {name!r}")
    for name in sorted(REQUIRED - files.keys()):
        raise BundleError(f"{where}/{name}: expected in every bundle, got a manifest without it")
    return files


def read_manifest(uri: Location, digest: str) -> Digests:
    """Return the manifest of a bundle, checked against the digest; its files are not read.

    Raises:
        BundleError: there is no manifest, it has another digest, or it is damaged or too new.
        StorageError: the storage cannot be read.
    """
    return parse_manifest(_manifest_bytes(uri, digest), where=os.fspath(uri))


def check_sizes(uri: Location, manifest: Digests) -> None:
    """Compare the names and sizes of all files with the manifest, before any is read.

    Raises:
        BundleError: a file is missing, extra, a link, or of another size.
        StorageError: the storage cannot be read.
    """
    if (folder := local_path(uri)) is None:
        found = {name: info.size for name, info in filesystem.entries(uri, recursive=True).items() if info.is_file}
    else:
        found = dict(_local_files(folder))
    found.pop(MANIFEST, None)
    for name in sorted(found.keys() - manifest.keys()):
        raise _damage(uri, name, "no such file: the manifest does not list it", f"one of {found[name]} bytes")
    for name, entry in sorted(manifest.items()):
        if name not in found:
            raise _damage(uri, name, f"a file of {entry.size} bytes", "nothing")
        if found[name] != entry.size:
            raise _damage(uri, name, f"{entry.size} bytes", f"{found[name]} bytes")


class BundleFiles:
    """The files of a bundle, each verified as it is read.

    Raises:
        BundleError, StorageError: as ``read_manifest``.
    """

    def __init__(self, uri: Location, digest: str) -> None:
        self.uri = uri
        self.digest = digest
        self.manifest = read_manifest(uri, digest)

    def read(self, name: str) -> bytes:
        """Return the bytes of a file; no other file is read.

        Raises:
            BundleError: it is missing, or is no longer what the manifest says.
            StorageError: the storage cannot be read.
        """
        entry = self.manifest[name]
        try:
            with _open(self.uri, name) as stream:
                data = bytes(stream.read(entry.size + 1))
        except NotFoundError as error:
            raise _damage(self.uri, name, f"a file of {entry.size} bytes", "nothing") from error
        got = hashlib.sha256(data).hexdigest()
        if got != entry.sha256:
            where = f"{os.fspath(self.uri)}/{name}"
            raise BundleError(f"{where}: expected SHA-256 {entry.sha256}, got {got}: changed while it was loaded")
        return data

    def json(self, name: str) -> Any:
        """Return the content of a JSON file.

        Raises:
            BundleError, StorageError: as ``read``.
        """
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise BundleError(f"{os.fspath(self.uri)}/{name}: expected JSON, got {error}") from error


def _checked(digest: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise BundleError(f"{digest!r} is not a digest; expected the 64 hex digits of a SHA-256")
    return digest


def _manifest_bytes(uri: Location, digest: str) -> bytes:
    _checked(digest)
    where = f"{os.fspath(uri)}/{MANIFEST}"
    try:
        with _open(uri, MANIFEST) as stream:
            data = bytes(stream.read(_MAX_MANIFEST_BYTES + 1))
    except NotFoundError as error:
        raise BundleError(f"{where}: expected the manifest of a bundle, got nothing") from error
    got = hashlib.sha256(data).hexdigest()
    if got != digest:
        raise BundleError(
            f"{where}: expected SHA-256 {digest}, got {got}",
            hint="The bundle was changed after it was registered. Move it away, then register the run again: "
            "that writes the same bundle.",
        )
    return data


def _is_safe(name: str) -> bool:
    parts = name.split("/")
    return (
        name != MANIFEST
        and all(part not in {"", ".", ".."} for part in parts)
        and not re.search(r"[\\\x00-\x1f:]", name)
    )


def _damage(uri: Location, name: str, expected: str, got: str) -> BundleError:
    return BundleError(
        f"{os.fspath(uri)}/{name}: expected {expected}, got {got}",
        hint="The bundle is damaged or was tampered with. Restore it from a copy, or move it away and register the "
        "run again: that writes the same bundle.",
    )


def _local_files(root: Path) -> Iterator[tuple[str, int]]:
    for folder, folders, names in os.walk(root, onerror=_unreadable):
        for name in [*folders, *names]:
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                raise _damage(root, relative, "a regular file", f"a link to {path.readlink()}")
            if stat.S_ISREG(status.st_mode):
                yield relative, status.st_size
            elif not stat.S_ISDIR(status.st_mode):
                raise _damage(root, relative, "a regular file", "a special file")


def _unreadable(error: OSError) -> None:
    raise StorageError(f"{error.filename} cannot be read: {error.strerror}") from error


@contextlib.contextmanager
def _open(uri: Location, name: str) -> Iterator[BinaryIO]:
    # A link would let the file change under its name; a FIFO would never end.
    try:
        with filesystem.reader(filesystem.join(uri, name), flags=os.O_NOFOLLOW | os.O_NONBLOCK) as stream:
            yield stream
    except StorageError as error:
        if getattr(error.__cause__, "errno", None) != errno.ELOOP:
            raise
        raise _damage(uri, name, "a regular file", "a link") from error
