"""Whether the files of a bundle are the ones its digest vouches for.

Owns the names of a bundle's files and the format of its manifest. The digest always comes from the caller, who
has it from the registry, the desired state or Serve's arguments; nothing in the bundle can vouch for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from raymlops.errors import BundleError, StorageError
from raymlops.storage.filesystem import Location, Place, locate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
ROWS = "rows.safetensors"
RECIPE = "recipe.json"
STATE = "state.json"
SIGNATURE = "signature.json"
EXAMPLE = "example.json"
CONFIG = "config.yaml"
PROFILE = "profile.json"
EVALUATION = "evaluation.json"
LINEAGE = "lineage.json"
LOSS = "loss.json"
"""How answers are compared with labels. Bundles of earlier releases lack it, and earlier releases ignore it."""
CODE = "code"
REQUIRED = frozenset(
    {WEIGHTS, ROWS, RECIPE, STATE, SIGNATURE, EXAMPLE, CONFIG, PROFILE, EVALUATION, LINEAGE},
)
DEFAULT_CACHE = "~/.raymlops/cache/bundles"

_MAX_MANIFEST_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What the manifest says about one file."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of a bundle, by POSIX path within it."""

    format_version: int
    files: dict[str, FileEntry]

    def to_bytes(self) -> bytes:
        """Return the one byte sequence whose SHA-256 is the bundle's digest."""
        files = {name: {"sha256": entry.sha256, "size": entry.size} for name, entry in self.files.items()}
        data = {"format_version": self.format_version, "files": files}
        return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()


def verify(uri: Location, digest: str) -> Manifest:
    """Check every file of a bundle against the digest that the caller trusts, and return its manifest.

    Raises:
        BundleError: naming the file, what was expected and what was got: no bundle there, another digest, a newer
            format, a file that is missing, extra, a link, or of another size or content.
        StorageError: the storage cannot be read.
    """
    place = locate(uri)
    manifest = read_manifest(uri, digest)
    found = dict(_local_files(place) if place.local is not None else _remote_files(place))
    found.pop(MANIFEST, None)
    for name in sorted(found.keys() - manifest.files.keys()):
        raise _damage(place, name, "no such file: the manifest does not list it", f"one of {found[name]} bytes")
    for name, entry in sorted(manifest.files.items()):
        if name not in found:
            raise _damage(place, name, f"a file of {entry.size} bytes", "nothing")
        if found[name] != entry.size:
            raise _damage(place, name, f"{entry.size} bytes", f"{found[name]} bytes")
        got = _sha256(place, name)
        if got != entry.sha256:
            raise _damage(place, name, f"SHA-256 {entry.sha256}", got)
    return manifest


def fetch(uri: Location, digest: str, *, cache: str | os.PathLike[str] = DEFAULT_CACHE) -> Path:
    """Return a local folder that holds the verified bundle; a remote one is kept in ``cache`` under its digest.

    What the cache holds is verified again at each call, and fetched anew when it was damaged.

    Raises:
        BundleError: as ``verify``.
        StorageError: the storage cannot be read, or the cache not written.
    """
    place = locate(uri)
    if place.local is not None:
        verify(uri, digest)
        return place.local
    data = _manifest_bytes(place, digest)
    folder = Path(cache).expanduser() / digest
    if folder.exists():
        try:
            verify(folder, digest)
        except BundleError:
            shutil.rmtree(folder)
        else:
            return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{digest}.", suffix=".tmp", dir=folder.parent))
    except OSError as error:
        raise StorageError(f"the bundle cache {folder.parent} cannot be written: {error}") from error
    try:
        for name, entry in parse_manifest(data, where=place.uri).files.items():
            _download(place, name, temporary / name, size=entry.size)
        (temporary / MANIFEST).write_bytes(data)
        verify(temporary, digest)
        try:
            temporary.rename(folder)
        except OSError:
            # Another process fetched the same bundle meanwhile.
            verify(folder, digest)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def parse_manifest(data: bytes, *, where: str) -> Manifest:
    """Read a manifest whose digest has been checked.

    Raises:
        BundleError: it is damaged, names a file outside the bundle, or its format is newer than this raymlops.
    """
    try:
        content = json.loads(data)
        version = int(content["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{where}/{MANIFEST}: expected JSON with a format_version, got {data[:60]!r}") from error
    if not 1 <= version <= FORMAT_VERSION:
        raise BundleError(
            f"{where}/{MANIFEST}: format_version: expected 1 to {FORMAT_VERSION}, got {version}",
            hint="A newer raymlops wrote this bundle: upgrade raymlops here.",
        )
    try:
        files = {
            str(name): FileEntry(sha256=str(entry["sha256"]), size=int(entry["size"]))
            for name, entry in content["files"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{where}/{MANIFEST}: expected files with sha256 and size, got something else") from error
    for name in files:
        if not _is_safe(name):
            raise BundleError(f"{where}/{MANIFEST}: expected names of files inside the bundle, got {name!r}")
    for name in sorted(REQUIRED - files.keys()):
        raise BundleError(f"{where}/{name}: expected in every bundle, got a manifest without it")
    return Manifest(format_version=version, files=files)


def read_manifest(uri: Location, digest: str) -> Manifest:
    """Return the manifest of a bundle, checked against the digest; its files are not looked at.

    Raises:
        BundleError: there is no manifest, it has another digest, or it is damaged or too new.
    """
    place = locate(uri)
    return parse_manifest(_manifest_bytes(place, digest), where=place.uri)


def read_file(folder: Path, name: str, manifest: Manifest) -> bytes:
    """Return the bytes of one file of a local bundle, checked at the moment of reading.

    Raises:
        BundleError: the file changed since it was verified.
    """
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise BundleError(f"{folder}/{name}: expected a readable file, got {error}") from error
    return _checked(data, name, manifest, where=str(folder))


def read_small(uri: Location, name: str, manifest: Manifest) -> bytes:
    """Return the bytes of one small file of a bundle wherever it is, checked; no other file is looked at.

    Raises:
        BundleError: it is missing, larger than the manifest says, or something else.
        StorageError: the storage cannot be read.
    """
    place = locate(uri)
    entry = manifest.files[name]
    try:
        with _open(place, name) as stream:
            data: bytes = _reading(place, lambda: stream.read(entry.size + 1))
    except FileNotFoundError as error:
        raise _damage(place, name, f"a file of {entry.size} bytes", "nothing") from error
    return _checked(data, name, manifest, where=place.uri)


def _checked(data: bytes, name: str, manifest: Manifest, *, where: str) -> bytes:
    got = hashlib.sha256(data).hexdigest()
    expected = manifest.files[name].sha256
    if got != expected:
        raise BundleError(f"{where}/{name}: expected SHA-256 {expected}, got {got}: changed while it was loaded")
    return data


def _manifest_bytes(place: Place, digest: str) -> bytes:
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise BundleError(f"{digest!r} is no digest; expected the 64 hex digits of a SHA-256")
    try:
        with _open(place, MANIFEST) as stream:
            data = stream.read(_MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError as error:
        raise BundleError(f"{place.uri}/{MANIFEST}: expected the manifest of a bundle, got nothing") from error
    got = hashlib.sha256(data).hexdigest()
    if got != digest:
        raise BundleError(
            f"{place.uri}/{MANIFEST}: expected SHA-256 {digest}, got {got}",
            hint="The bundle was changed after it was registered. Move it away, then register the run again: "
            "the same bundle is written anew.",
        )
    return data


def _is_safe(name: str) -> bool:
    parts = name.split("/")
    return (
        name != MANIFEST
        and all(part not in {"", ".", ".."} for part in parts)
        and not re.search(r"[\\\x00-\x1f:]", name)
    )


def _damage(place: Place, name: str, expected: str, got: str) -> BundleError:
    return BundleError(
        f"{place.uri}/{name}: expected {expected}, got {got}",
        hint="The bundle is damaged or was tampered with. Restore it from a copy, or move it away and register the "
        "run again: the same bundle is written anew.",
    )


def _local_files(place: Place) -> Iterator[tuple[str, int]]:
    root = place.local
    assert root is not None
    for folder, folders, names in os.walk(root, onerror=_unreadable):
        for name in [*folders, *names]:
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                raise _damage(place, relative, "a regular file", f"a link to {path.readlink()}")
            if stat.S_ISREG(status.st_mode):
                yield relative, status.st_size
            elif not stat.S_ISDIR(status.st_mode):
                raise _damage(place, relative, "a regular file", "a special file")


def _unreadable(error: OSError) -> None:
    raise StorageError(f"{error.filename} cannot be read: {error.strerror}") from error


def _remote_files(place: Place) -> Iterator[tuple[str, int]]:
    from pyarrow.fs import FileSelector, FileType

    for info in _reading(place, lambda: place.filesystem.get_file_info(FileSelector(place.path, recursive=True))):
        if info.type == FileType.File:
            yield info.path[len(place.path) :].lstrip("/"), int(info.size)


def _open(place: Place, name: str) -> BinaryIO:
    if place.local is None:
        stream: BinaryIO = _reading(place, lambda: place.filesystem.open_input_stream(f"{place.path}/{name}"))
        return stream
    path = place.local / name
    try:
        # A link would let the file change under its name; a FIFO would never end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(str(path)) from error
    except OSError as error:
        raise _damage(place, name, "a readable, regular file", error.strerror or str(error)) from error
    return os.fdopen(descriptor, "rb")


def _sha256(place: Place, name: str) -> str:
    digest = hashlib.sha256()
    with _open(place, name) as stream:
        while chunk := _reading(place, lambda: stream.read(_CHUNK_BYTES)):
            digest.update(chunk)
    return digest.hexdigest()


def _download(place: Place, name: str, target: Path, *, size: int) -> None:
    try:
        with _open(place, name) as source:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as sink:
                # One chunk too many shows a longer file; verify names it.
                for _ in range(size // _CHUNK_BYTES + 2):
                    sink.write(_reading(place, lambda: source.read(_CHUNK_BYTES)))
    except FileNotFoundError as error:
        raise _damage(place, name, f"a file of {size} bytes", "nothing") from error


def _reading(place: Place, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"{place.uri} cannot be read: {error}") from error
